from . import huggingface as huggingface
from .pretrained import (
    load_pretrained as load_pretrained,
    save_pretrained as save_pretrained,
)
from .safetensors import load_weights as load_weights, save_weights as save_weights

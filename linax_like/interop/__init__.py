from . import huggingface as huggingface
from .safetensors import load_weights as load_weights, save_weights as save_weights

from .distill import distill as distill, KernelError as KernelError
from .generate import generate as generate, Generation as Generation
from .sampling import (
    keep_min_p as keep_min_p,
    keep_top_k as keep_top_k,
    keep_top_p as keep_top_p,
    sample as sample,
    Sampling as Sampling,
)
from .tiled import tiled_decoding as tiled_decoding

from .generate import generate as generate
from .sampling import keep_top_k as keep_top_k, keep_top_p as keep_top_p, sample as sample

import numpy as np

import linax_like as lx
from oracles import Oracle


def lru(mixer, x):
    decay = np.exp(-np.exp(mixer.log_decay) + 1j * np.exp(mixer.log_phase))
    into = np.exp(mixer.log_gain)[:, None] * (mixer.in_proj[0] + 1j * mixer.in_proj[1])
    out = mixer.out_proj[0] + 1j * mixer.out_proj[1]
    h, y = np.zeros_like(decay), np.empty_like(x)
    for t, x_t in enumerate(x):
        h = decay * h + into @ x_t
        y[t] = (out @ h).real + mixer.skip * x_t
    return y, 1 / (1 - np.abs(decay).max())


ORACLES = [
    Oracle("lru", lx.LRUSequenceMixerConfig(state_dim=8), lru),
    Oracle("lru_long", lx.LRUSequenceMixerConfig(8, min_radius=0.99, max_radius=0.9999), lru),
]

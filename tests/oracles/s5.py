import numpy as np

import linax_like as lx
from oracles import Oracle


def s5(mixer, x):
    eigenvalues = mixer.eigenvalues_real + 1j * mixer.eigenvalues_imag
    dt = np.exp(mixer.log_step)
    if mixer.config.discretization == "bilinear":
        decay = (1 + dt / 2 * eigenvalues) / (1 - dt / 2 * eigenvalues)
        gain = dt / (1 - dt / 2 * eigenvalues)
    else:
        decay = np.exp(dt * eigenvalues)
        gain = (decay - 1) / eigenvalues
    into = gain[:, None] * (mixer.in_proj[0] + 1j * mixer.in_proj[1])
    out = 2 * (mixer.out_proj[0] + 1j * mixer.out_proj[1])  # every state stands for a pair
    h, y = np.zeros_like(decay), np.empty_like(x)
    for t, x_t in enumerate(x):
        h = decay * h + into @ x_t
        y[t] = (out @ h).real + mixer.skip * x_t
    return y, 1 / (1 - np.abs(decay).max())


ORACLES = [
    Oracle("s5", lx.S5SequenceMixerConfig(), s5),
    Oracle("s5_bilinear", lx.S5SequenceMixerConfig(16, discretization="bilinear"), s5),
]

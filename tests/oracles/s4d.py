import numpy as np

import linax_like as lx
from oracles import Oracle


def s4d(mixer, x):
    eigenvalues = -np.exp(mixer.log_decay) + 1j * mixer.frequency
    z = np.exp(mixer.log_step)[:, None] * eigenvalues
    out = mixer.out_proj[0] + 1j * mixer.out_proj[1]
    match mixer.config.discretization:
        case "zoh":
            decay, gain = np.exp(z), np.expm1(z) / eigenvalues
        case "bilinear":
            decay, gain = (1 + z / 2) / (1 - z / 2), z / eigenvalues / (1 - z / 2)
        case "dirac":
            decay, gain = np.exp(z), 1.0
    h, y = np.zeros_like(decay), np.empty_like(x)
    for t, x_t in enumerate(x):
        h = decay * h + gain * x_t[:, None]
        y[t] = 2 * (out * h).real.sum(axis=1) + mixer.skip * x_t
    return y, 1 / (1 - np.abs(decay).max())


ORACLES = [
    Oracle("s4d", lx.S4DSequenceMixerConfig(), s4d),
    Oracle("s4d_legs", lx.S4DSequenceMixerConfig(init="legs", discretization="bilinear"), s4d),
]

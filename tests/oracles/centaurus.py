import numpy as np

import linax_like as lx
from oracles import Oracle


def discretize(mixer):
    poles = -np.exp(mixer.log_decay) + 1j * mixer.frequency
    dt = np.exp(mixer.log_step)[:, None]
    match mixer.config.discretization:
        case "zoh":
            return np.exp(dt * poles), np.expm1(dt * poles) / poles
        case "bilinear":
            return (2 + dt * poles) / (2 - dt * poles), 2 * dt / (2 - dt * poles)


def neck(mixer, x):
    decay, gain = discretize(mixer)
    s, y = np.zeros_like(decay), np.empty_like(x)
    for t, x_t in enumerate(x):
        s = decay * s + gain * (mixer.in_proj @ x_t)[:, None]
        y[t] = mixer.out_proj @ (mixer.mix * s.real).sum(axis=1)
    return y, 1 / (1 - np.abs(decay).max())


def full(mixer, x):
    decay, gain = discretize(mixer)
    s, y = np.zeros_like(decay), np.empty_like(x)
    for t, x_t in enumerate(x):
        s = decay * s + gain * (mixer.in_proj * x_t).reshape(-1, 1)
        pairs = (mixer.mix * s.real).sum(axis=1).reshape(mixer.out_proj.shape)
        y[t] = (mixer.out_proj * pairs).sum(axis=1)
    return y, 1 / (1 - np.abs(decay).max())


ORACLES = [
    Oracle("centaurus", lx.CentaurusSequenceMixerConfig(), neck),
    Oracle(
        "centaurus_full",
        lx.CentaurusSequenceMixerConfig("full", sub_state_dim=3, discretization="bilinear"),
        full,
    ),
]

import numpy as np

import linax_like as lx
from oracles import Oracle


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def short_conv(weight, bias, u):
    before = np.zeros((len(weight) - 1, u.shape[1]))
    window = np.concatenate([before, u])
    return bias + sum(w * window[j : j + len(u)] for j, w in enumerate(weight))


def decay_and_gain(A, dt, method):
    z = dt[:, None] * A
    if method == "bilinear":
        return (1 + z / 2) / (1 - z / 2), dt[:, None] / (1 - z / 2)
    gain = {"zoh": np.expm1(z) / A, "dirac": np.ones_like(z), "euler": dt[:, None] + 0 * z}
    return np.exp(z), gain[method]


def mamba(mixer, x, decay_dt=None, decay_method=None):
    """
    - `decay_dt`: the step size of the decay at every position, if it is not Δ.
    - `decay_method`: the discretization of the decay, if it is not the gain's.
    """
    method, states = mixer.config.discretization, mixer.config.state_dim
    u, gate = np.split(x @ mixer.in_proj.T, 2, axis=1)
    u = short_conv(mixer.short_weight, mixer.short_bias, u)
    u = u * sigmoid(u)
    rank = mixer.dt_proj.shape[1]
    selected = u @ mixer.select_proj.T
    dt = np.log1p(np.exp(selected[:, :rank] @ mixer.dt_proj.T + mixer.dt_bias))
    B, C = selected[:, rank : rank + states], selected[:, rank + states :]
    A, factor = -np.exp(mixer.log_decay), 1
    if mixer.frequency is not None:
        A, factor = A + 1j * mixer.frequency, 2
        B, C = (z[:, : states // 2] + 1j * z[:, states // 2 :] for z in (B, C))
    h, y, slowest = np.zeros_like(A), np.empty_like(u), 0.0
    for t in range(len(x)):
        elapsed = dt[t] if decay_dt is None else decay_dt[t]
        decay, _ = decay_and_gain(A, elapsed, decay_method or method)
        _, gain = decay_and_gain(A, dt[t], method)
        h = decay * h + gain * u[t][:, None] * B[t]
        y[t] = factor * (h @ C[t]).real + mixer.skip * u[t]
        slowest = max(slowest, np.abs(decay).max())
    return (y * gate * sigmoid(gate)) @ mixer.out_proj.T, 1 / (1 - slowest)


ORACLES = [
    Oracle("mamba", lx.MambaSequenceMixerConfig(), mamba),
    Oracle(
        "mamba_complex",
        lx.MambaSequenceMixerConfig(8, eigenvalues="complex", discretization="zoh"),
        mamba,
    ),
]

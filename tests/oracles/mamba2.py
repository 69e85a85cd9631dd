import numpy as np

import linax_like as lx
from oracles import Oracle


def mamba2(mixer, x):
    cfg, heads, head = mixer.config, mixer.num_heads, mixer.head_dim
    inner, shared = heads * head, cfg.num_groups * cfg.state_dim
    z, mixed, dt = np.split(x @ mixer.in_proj.T, (inner, 2 * inner + 2 * shared), axis=1)
    past = np.concatenate([np.zeros((cfg.short_width - 1, mixed.shape[1])), mixed])
    taps = [past[j : j + len(x)] * weight for j, weight in enumerate(mixer.short_weight)]
    mixed = silu(sum(taps) + mixer.short_bias)
    dt = np.log1p(np.exp(dt + mixer.dt_bias))
    dt = dt if cfg.dt_limits is None else np.clip(dt, *cfg.dt_limits)
    decay = np.exp(-np.exp(mixer.log_decay) * dt)
    group = np.arange(heads) // (heads // cfg.num_groups)
    h, y = np.zeros((heads, head, cfg.state_dim)), np.empty((len(x), inner))
    for t in range(len(x)):
        u = mixed[t, :inner].reshape(heads, head)
        b = mixed[t, inner : inner + shared].reshape(cfg.num_groups, -1)[group]
        c = mixed[t, inner + shared :].reshape(cfg.num_groups, -1)[group]
        h = decay[t][:, None, None] * h + (dt[t][:, None] * u)[:, :, None] * b[:, None, :]
        y[t] = (np.einsum("hpn,hn->hp", h, c) + mixer.skip[:, None] * u).ravel()
    y = (y * silu(z)).reshape(len(x), cfg.num_groups, -1)
    y = y / np.sqrt((y * y).mean(axis=2, keepdims=True) + cfg.norm_eps)
    return (y.reshape(len(x), inner) * mixer.norm_weight) @ mixer.out_proj.T, 1 / (1 - decay.max())


def silu(x):
    return x / (1 + np.exp(-x))


ORACLES = [
    Oracle("mamba2", lx.Mamba2SequenceMixerConfig(16), mamba2),
    Oracle(
        "mamba2_groups",
        lx.Mamba2SequenceMixerConfig(4, head_dim=4, num_groups=2, dt_limits=(0.001, 1.0)),
        mamba2,
    ),
]

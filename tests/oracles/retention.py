"""Retention: every head fades at one rate, and sees positions as angles."""

import numpy as np

import linax_like as lx

from . import Oracle


def retention(mixer, x):
    cfg = mixer.config
    groups, key, heads, value = (
        mixer.num_heads,
        mixer.head_dim,
        mixer.num_value_heads,
        mixer.value_head_dim,
    )
    q, k, v = np.split(x @ mixer.qkv_proj.T, (groups * key, 2 * groups * key), axis=1)
    q, k, v = (z.reshape(len(x), -1, size) for z, size in ((q, key), (k, key), (v, value)))
    if cfg.rope_base is not None:
        q, k = turned(q, cfg.rope_base), turned(k, cfg.rope_base)
    decay = np.tile([1 - 2.0 ** (-5 - h) for h in range(heads)], (len(x), 1))
    if cfg.decay == "gated":
        logits = x @ mixer.decay_proj.T + mixer.decay_bias
        decay = (1 / (1 + np.exp(-logits))) ** (1 / cfg.gate_normalizer)
    y = np.empty((len(x), heads, value))
    for h in range(heads):
        memory, g = np.zeros((key, value)), h // (heads // groups)
        for t in range(len(x)):
            memory = decay[t, h] * memory + np.outer(k[t, g], v[t, h])
            y[t, h] = q[t, g] @ memory / np.sqrt(key)
    y = y / np.sqrt((y * y).mean(axis=2, keepdims=True) + cfg.norm_eps) * mixer.norm_weight
    y = y.reshape(len(x), -1)
    if cfg.output_gate:
        gate = x @ mixer.gate_proj.T
        y = y * gate / (1 + np.exp(-gate))
    return y @ mixer.out_proj.T, 1 / (1 - decay.max())


def turned(x, base):
    """A pair of features is a complex number, which every position turns a little further."""
    half = x.shape[2] // 2
    speed = base ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * np.arange(len(x))[:, None] * speed)[
        :, None
    ]
    return np.concatenate([z.real, z.imag], axis=2)


ORACLES = [
    Oracle("retention", lx.RetentionSequenceMixerConfig(), retention),
    Oracle(
        "retention_gated",
        lx.RetentionSequenceMixerConfig(
            2,
            num_value_heads=4,
            value_head_dim=3,
            decay="gated",
            gate_normalizer=4.0,
            rope_base=None,
            output_gate=False,
        ),
        retention,
    ),
]

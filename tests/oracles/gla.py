"""Gated linear attention: every channel of a key fades at its own rate."""

import numpy as np

import linax_like as lx

from . import Oracle


def gla(mixer, x):
    cfg = mixer.config
    groups, key, heads, value = (
        mixer.num_heads,
        mixer.head_dim,
        mixer.num_value_heads,
        mixer.value_head_dim,
    )
    mixed = x @ mixer.qkv_proj.T
    if cfg.short_width is not None:
        past = np.concatenate([np.zeros((cfg.short_width - 1, mixed.shape[1])), mixed])
        mixed = sum(past[j : j + len(x)] * tap for j, tap in enumerate(mixer.short_weight))
    if cfg.activation == "silu":
        mixed = silu(mixed)
    logits = x @ mixer.decay_in_proj.T @ mixer.decay_out_proj.T + mixer.decay_bias
    decay = (1 / (1 + np.exp(-logits))) ** (1 / cfg.gate_normalizer)
    y = np.empty((len(x), heads, value))
    for h in range(heads):
        memory, g = np.zeros((key, value)), h // (heads // groups)
        for t, row in enumerate(mixed):
            q = row[g * key :][:key] / np.sqrt(key)
            k = row[(groups + g) * key :][:key]
            v = row[2 * groups * key + h * value :][:value]
            memory = np.diag(decay[t, h * key : (h + 1) * key]) @ memory + np.outer(k, v)
            y[t, h] = q @ memory
    y = y / np.sqrt((y * y).mean(axis=2, keepdims=True) + cfg.norm_eps) * mixer.norm_weight
    y = y.reshape(len(x), -1)
    if cfg.output_gate:
        y = y * silu(x @ mixer.gate_proj.T)
    return y @ mixer.out_proj.T, 1 / (1 - decay.max())


def silu(x):
    return x / (1 + np.exp(-x))


ORACLES = [
    Oracle("gla", lx.GLASequenceMixerConfig(), gla),
    Oracle(
        "gla_short",
        lx.GLASequenceMixerConfig(
            2,
            head_dim=3,
            num_value_heads=4,
            gate_rank=5,
            gate_normalizer=4.0,
            activation="silu",
            short_width=4,
            output_gate=False,
        ),
        gla,
    ),
]

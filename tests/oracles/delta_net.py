"""DeltaNet: every head corrects what its memory answers to the key."""

import numpy as np

import linax_like as lx

from . import Oracle


def delta_net(mixer, x):
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
        taps = [past[j : j + len(x)] * mixer.short_weight[j] for j in range(cfg.short_width)]
        mixed = sum(taps)
    if cfg.activation == "silu":
        mixed = silu(mixed)
    beta = (2 if cfg.negative_eigenvalues else 1) / (1 + np.exp(-x @ mixer.beta_proj.T))
    y = np.empty((len(x), heads, value))
    for h in range(heads):
        memory, g = np.zeros((value, key)), h // (heads // groups)
        for t, row in enumerate(mixed):
            q = unit(row[g * key : (g + 1) * key], cfg.norm_eps) / np.sqrt(key)
            k = unit(row[(groups + g) * key : (groups + g + 1) * key], cfg.norm_eps)
            v = row[2 * groups * key + h * value :][:value]
            memory = memory @ (np.eye(key) - beta[t, h] * np.outer(k, k)) + beta[t, h] * np.outer(
                v, k
            )
            y[t, h] = memory @ q
    if cfg.output_norm == "rms":
        mean_square = (y * y).mean(axis=2, keepdims=True)
        y = y / np.sqrt(mean_square + cfg.norm_eps) * mixer.norm_weight
    y = y.reshape(len(x), -1)
    if cfg.output_gate:
        y = y * silu(x @ mixer.gate_proj.T)
    return y @ mixer.out_proj.T, len(x)  # nothing fades


def silu(x):
    return x / (1 + np.exp(-x))


def unit(x, eps):
    return x / np.sqrt(x @ x + eps)


ORACLES = [
    Oracle("delta_net", lx.DeltaNetSequenceMixerConfig(), delta_net),
    Oracle(
        "delta_net_bare",
        lx.DeltaNetSequenceMixerConfig(
            2,
            num_value_heads=4,
            value_head_dim=2,
            negative_eigenvalues=True,
            activation="none",
            short_width=None,
            output_norm="none",
            output_gate=True,
        ),
        delta_net,
    ),
]

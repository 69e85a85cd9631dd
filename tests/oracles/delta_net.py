"""The delta rules: every head corrects what its memory answers to a key."""

import numpy as np

import linax_like as lx

from . import Oracle


UNIT_EPS = 1e-6


def delta_net(mixer, x):
    cfg = mixer.config
    mixed = x @ mixer.qkv_proj.T
    if cfg.short_width is not None:
        mixed = convolve(mixed, mixer.short_weight)
    if cfg.activation == "silu":
        mixed = silu(mixed)
    beta = rates(mixer, x)[:, None]
    y = remember(mixer, mixed, beta, np.ones((len(x), mixer.num_value_heads, 1)))
    if cfg.output_norm == "rms":
        y = rms(mixer, y)
    y = y.reshape(len(x), -1)
    if cfg.output_gate:
        y = y * silu(x @ mixer.gate_proj.T)
    return y @ mixer.out_proj.T, len(x)  # nothing fades


def gated_delta_net(mixer, x):
    mixed = silu(convolve(x @ mixer.qkv_proj.T, mixer.short_weight))
    rate = softplus(x @ mixer.decay_proj.T + mixer.dt_bias)
    decay = np.exp(-np.exp(mixer.log_decay) * rate)
    y = remember(mixer, mixed, rates(mixer, x)[:, None], decay[:, :, None])
    y = rms(mixer, y).reshape(len(x), -1)
    if mixer.config.output_gate:
        y = y * silu(x @ mixer.gate_proj.T)
    return y @ mixer.out_proj.T, 1 / (1 - decay.max())


def gated_delta_product(mixer, x):
    cfg, heads = mixer.config, mixer.num_value_heads
    mixed = silu(convolve(x @ mixer.qkv_proj.T, mixer.short_weight))
    beta = rates(mixer, x).reshape(len(x), cfg.num_householder, heads)
    decay, memory = np.ones((len(x), heads)), len(x)
    if cfg.forget_gate:
        rate = softplus(x @ mixer.decay_proj.T + mixer.dt_bias)
        decay = np.exp(-np.exp(mixer.log_decay) * rate)
        memory = 1 / (1 - decay.max())
    y = rms(mixer, remember(mixer, mixed, beta, decay[:, :, None])).reshape(len(x), -1)
    if cfg.output_gate:
        y = y * silu(x @ mixer.gate_proj.T)
    return y @ mixer.out_proj.T, memory


def kda(mixer, x):
    heads, key = mixer.num_value_heads, mixer.head_dim
    mixed = silu(convolve(x @ mixer.qkv_proj.T, mixer.short_weight))
    logits = (x @ mixer.decay_down_proj.T) @ mixer.decay_up_proj.T
    rate = softplus(logits.reshape(len(x), heads, key) + mixer.dt_bias)
    decay = np.exp(-np.exp(mixer.log_decay)[:, None] * rate)
    y = rms(mixer, remember(mixer, mixed, rates(mixer, x)[:, None], decay)).reshape(len(x), -1)
    y = y * sigmoid((x @ mixer.gate_down_proj.T) @ mixer.gate_up_proj.T)
    return y @ mixer.out_proj.T, 1 / (1 - decay.max())


def remember(mixer, mixed, beta, decay):
    """Every position decays the memory, corrects it `updates` times, and reads it once."""
    groups, key = mixer.num_heads, mixer.head_dim
    heads, value = mixer.num_value_heads, mixer.value_head_dim
    updates = beta.shape[1]
    y = np.empty((len(mixed), heads, value))
    for h in range(heads):
        memory, g = np.zeros((value, key)), h // (heads // groups)
        for t, row in enumerate(mixed):
            memory = memory * decay[t, h]
            for i in range(updates):
                k = unit(row[((1 + i) * groups + g) * key :][:key])
                v = row[(1 + updates) * groups * key + (i * heads + h) * value :][:value]
                change = np.eye(key) - beta[t, i, h] * np.outer(k, k)
                memory = memory @ change + beta[t, i, h] * np.outer(v, k)
            y[t, h] = memory @ unit(row[g * key :][:key]) / np.sqrt(key)
    return y


def rates(mixer, x):
    return (2 if mixer.config.negative_eigenvalues else 1) * sigmoid(x @ mixer.beta_proj.T)


def convolve(x, weight):
    past = np.concatenate([np.zeros((len(weight) - 1, x.shape[1])), x])
    return sum(past[j : j + len(x)] * weight[j] for j in range(len(weight)))


def rms(mixer, y):
    mean_square = (y * y).mean(axis=2, keepdims=True)
    return y / np.sqrt(mean_square + mixer.config.norm_eps) * mixer.norm_weight


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def unit(x):
    return x / np.sqrt(x @ x + UNIT_EPS)


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
    Oracle("gated_delta_net", lx.GatedDeltaNetSequenceMixerConfig(), gated_delta_net),
    Oracle(
        "gated_delta_net_grouped",
        lx.GatedDeltaNetSequenceMixerConfig(
            2, num_value_heads=4, negative_eigenvalues=True, short_width=2, output_gate=False
        ),
        gated_delta_net,
    ),
    Oracle("gated_delta_product", lx.GatedDeltaProductSequenceMixerConfig(), gated_delta_product),
    Oracle(
        "gated_delta_product_unforgetting",
        lx.GatedDeltaProductSequenceMixerConfig(
            3, 2, num_value_heads=4, negative_eigenvalues=False, forget_gate=False
        ),
        gated_delta_product,
    ),
    Oracle("kda", lx.KDASequenceMixerConfig(), kda),
    Oracle(
        "kda_grouped",
        lx.KDASequenceMixerConfig(
            2, num_value_heads=4, value_head_dim=3, negative_eigenvalues=True
        ),
        kda,
    ),
]

"""mLSTM: without a scale, as the paper defines it; and with the paper's, as it computes it."""

import numpy as np

import linax_like as lx

from . import Oracle


def mlstm(mixer, x, read=None):
    """By default without a scale."""
    cfg, heads, key, value = mixer.config, mixer.num_heads, mixer.head_dim, mixer.value_head_dim
    mixed = x
    if cfg.short_width is not None:
        past = np.concatenate([np.zeros((cfg.short_width - 1, x.shape[1])), x])
        mixed = sum(past[j : j + len(x)] * tap for j, tap in enumerate(mixer.short_weight))
        mixed = mixed + mixer.short_bias
        mixed = mixed * sigmoid(mixed)
    q, k = (mixed @ mixer.qk_proj.T).reshape(len(x), 2, heads, key).swapaxes(0, 1)
    v = (x @ mixer.v_proj.T).reshape(len(x), heads, value)
    i = x @ mixer.input_gate_proj.T + mixer.input_gate_bias
    f = x @ mixer.forget_gate_proj.T + mixer.forget_gate_bias
    if cfg.soft_cap is not None:
        i, f = (cfg.soft_cap * np.tanh(z / cfg.soft_cap) for z in (i, f))
    h = np.stack(
        [
            (read or plain)(q[:, j] / np.sqrt(key), k[:, j], v[:, j], i[:, j], f[:, j])
            for j in range(heads)
        ],
        axis=1,
    )
    h = h - h.mean(axis=2, keepdims=True)
    h = h / np.sqrt((h * h).mean(axis=2, keepdims=True) + cfg.norm_eps)
    h = h.reshape(len(x), -1) * mixer.norm_weight * sigmoid(x @ mixer.gate_proj.T)
    return h @ mixer.out_proj.T, 1 / (1 - sigmoid(f).max())


def plain(q, k, v, i, f):
    """One head."""
    memory, norm, h = np.zeros((v.shape[1], k.shape[1])), np.zeros(k.shape[1]), np.empty(v.shape)
    for t in range(len(q)):
        memory = sigmoid(f[t]) * memory + np.exp(i[t]) * np.outer(v[t], k[t])
        norm = sigmoid(f[t]) * norm + np.exp(i[t]) * k[t]
        h[t] = memory @ q[t] / max(abs(norm @ q[t]), 1)
    return h


def scaled(q, k, v, i, f):
    """One head, whose memory is divided by the largest weight in it."""
    memory, norm, h = np.zeros((v.shape[1], k.shape[1])), np.zeros(k.shape[1]), np.empty(v.shape)
    log_f, m = -np.logaddexp(0, -f), -np.inf
    for t in range(len(q)):
        before, m = m, max(log_f[t] + m, i[t])
        memory = np.exp(log_f[t] + before - m) * memory + np.exp(i[t] - m) * np.outer(v[t], k[t])
        norm = np.exp(log_f[t] + before - m) * norm + np.exp(i[t] - m) * k[t]
        h[t] = memory @ q[t] / max(abs(norm @ q[t]), np.exp(-m))
    return h


def mlstm_scaled(mixer, x):
    return mlstm(mixer, x, scaled)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ORACLES = [
    Oracle("mlstm", lx.MLSTMSequenceMixerConfig(), mlstm),
    Oracle(
        "mlstm_short",
        lx.MLSTMSequenceMixerConfig(2, head_dim=3, value_head_dim=5, short_width=4, soft_cap=None),
        mlstm_scaled,
    ),
]

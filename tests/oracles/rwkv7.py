"""RWKV-7: every head takes away what its memory holds under one key, and adds under another."""

import numpy as np

import linax_like as lx

from . import Oracle


def rwkv7(mixer, x):
    heads, head, time = mixer.num_heads, mixer.head_dim, len(x)
    before = np.concatenate([np.zeros((1, x.shape[1])), x[:-1]])
    for_r, for_w, for_k, for_v, for_a, for_g = (x + mu * (before - x) for mu in mixer.shift_mix)
    r, k, v = for_r @ mixer.query_proj.T, for_k @ mixer.key_proj.T, for_v @ mixer.value_proj.T
    w = mixer.decay_bias + np.tanh(for_w @ mixer.decay_down_proj.T) @ mixer.decay_up_proj.T
    w = np.exp(-np.exp(-0.5) * sigmoid(w))
    a = mixer.rate_bias + (for_a @ mixer.rate_down_proj.T) @ mixer.rate_up_proj.T
    a = sigmoid(a)
    gate = sigmoid(for_g @ mixer.gate_down_proj.T) @ mixer.gate_up_proj.T
    removed = k * mixer.removal_scale
    k = k * (1 + mixer.rate_scale * (a - 1))
    y = np.empty((time, heads, head))
    for h in range(heads):
        here, memory = slice(h * head, (h + 1) * head), np.zeros((head, head))  # value, key
        for t in range(time):
            away = removed[t, here] / np.sqrt(removed[t, here] @ removed[t, here] + 1e-6)
            change = np.diag(w[t, here]) - np.outer(away, a[t, here] * away)
            memory = memory @ change + np.outer(v[t, here], k[t, here])
            asked = (r[t, here] * mixer.bonus[h]) @ k[t, here]
            answer = memory @ r[t, here]
            answer = (answer - answer.mean()) / np.sqrt(answer.var() + mixer.config.norm_eps)
            answer = answer * mixer.norm_weight[here] + mixer.norm_bias[here]
            y[t, h] = answer + asked * v[t, here]
    return (y.reshape(time, -1) * gate) @ mixer.out_proj.T, 1 / (1 - w.max())


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ORACLES = [
    Oracle("rwkv7", lx.RWKV7SequenceMixerConfig(), rwkv7),
    Oracle("rwkv7_heads", lx.RWKV7SequenceMixerConfig(2, decay_rank=3, gate_rank=5), rwkv7),
]

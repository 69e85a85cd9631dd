import math

import numpy as np

import linax_like as lx
from oracles import Oracle


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def gated(decay, drive):
    """The states, and how long the slowest one at any time remembers."""
    h, states = np.zeros_like(drive[0]), []
    for a, b in zip(decay, drive, strict=True):
        h = a * h + b
        states.append(h)
    return np.stack(states), 1 / (1 - decay.max())


def candidate(mixer, x):
    if mixer.config.candidate == "linear":
        return x
    return np.where(x < 0, sigmoid(x), x + 0.5)


def project_back(mixer, h):
    return h if mixer.out_proj is None else h @ mixer.out_proj.T


def min_gru(mixer, x):
    into_z, into_h = np.split(mixer.in_proj, 2)
    z = sigmoid(x @ into_z.T + mixer.gate_bias)
    h, memory = gated(1 - z, z * candidate(mixer, x @ into_h.T + mixer.candidate_bias))
    return project_back(mixer, h), memory


def min_lstm(mixer, x):
    into_f, into_i, into_h = np.split(mixer.in_proj, 3)
    bias_f, bias_i = np.split(mixer.gate_bias, 2)
    f, i = sigmoid(x @ into_f.T + bias_f), sigmoid(x @ into_i.T + bias_i)
    drive = i / (f + i) * candidate(mixer, x @ into_h.T + mixer.candidate_bias)
    h, memory = gated(f / (f + i), drive)
    return project_back(mixer, h), memory


def hgrn(mixer, x):
    f, i, g = (x @ w.T for w in np.split(mixer.in_proj, 3))
    silu = lambda x: x * sigmoid(x)
    low = mixer.config.lower_bound
    f = low + (1 - low) * sigmoid(f)
    h, memory = gated(f, (1 - f) * silu(i))
    size = np.sqrt(np.mean(h * h, axis=-1, keepdims=True) + mixer.config.norm.eps)
    return (mixer.norm.weight * h / size * silu(g)) @ mixer.out_proj.T, memory


def s7(mixer, x):
    u = x @ mixer.in_proj.T
    a = u @ mixer.decay_proj.T + mixer.decay_bias
    decay = 1 - 1 / (a**2 + 0.5)
    into = np.einsum("nij,tj->tin", mixer.state_in_proj, u)  # B
    out = np.einsum("nij,tj->tin", mixer.state_out_proj, u)  # C
    drive = np.einsum("tin,ti->tn", into, u) + u @ mixer.state_bias_proj.T
    h, memory = gated(decay, drive)
    y = np.einsum("tin,tn->ti", out, h) + (u @ mixer.skip_proj.T) * u
    erf = np.vectorize(math.erf)
    gelu = y * (1 + erf(y / np.sqrt(2))) / 2
    return sigmoid(gelu @ mixer.gate_proj.T) * y, memory


ORACLES = [
    Oracle("min_gru", lx.MinGRUSequenceMixerConfig(), min_gru),
    Oracle("min_gru_positive", lx.MinGRUSequenceMixerConfig(2, "positive"), min_gru),
    Oracle("min_lstm", lx.MinLSTMSequenceMixerConfig(), min_lstm),
    Oracle("min_lstm_positive", lx.MinLSTMSequenceMixerConfig(2, "positive"), min_lstm),
    Oracle("hgrn", lx.HGRNSequenceMixerConfig(), hgrn),
    Oracle("hgrn_slow", lx.HGRNSequenceMixerConfig(2, lower_bound=0.9), hgrn),
    Oracle("s7", lx.S7SequenceMixerConfig(4), s7),
]

import math

import numpy as np

import linax_like as lx
from oracles import Oracle


def rg_lru(mixer, x):
    heads, taps = mixer.num_heads, mixer.config.short_width
    v = x @ mixer.in_proj.T + mixer.in_bias
    past = np.concatenate([np.zeros((taps - 1, v.shape[1])), v])
    u = sum(past[j : j + len(x)] * w for j, w in enumerate(mixer.short_weight)) + mixer.short_bias
    r = gate(u, mixer.decay_gate_weight, mixer.decay_gate_bias, heads)
    i = gate(u, mixer.input_gate_weight, mixer.input_gate_bias, heads)
    radius = np.exp(-8 * r * np.log1p(np.exp(mixer.decay_logit)))
    decay, drive = radius, u
    if mixer.phase is not None:
        decay = radius * np.exp(1j * mixer.phase * r)
        real, imag = np.split(u, 2, axis=1)
        drive = real + 1j * imag
    gain = np.sqrt(1 - radius**2)
    gain[0] = 1  # the document begins
    h, states = 0, np.empty_like(drive)
    for t in range(len(x)):
        h = decay[t] * h + gain[t] * i[t] * drive[t]
        states[t] = h
    if mixer.phase is not None:
        states = np.concatenate([states.real, states.imag], axis=1)
    y = (states * gelu(x @ mixer.gate_proj.T + mixer.gate_bias)) @ mixer.out_proj.T
    return y + mixer.out_bias, 1 / (1 - radius.max())


def gate(u, weight, bias, heads):
    blocks = np.split(u, heads, axis=1)
    z = [block @ w.T + b for block, w, b in zip(blocks, weight, bias, strict=True)]
    return 1 / (1 + np.exp(-np.concatenate(z, axis=1)))


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ORACLES = [
    Oracle("rg_lru", lx.RGLRUSequenceMixerConfig(num_heads=2), rg_lru),
    Oracle("rg_lru_complex", lx.RGLRUSequenceMixerConfig(12, 2, "complex"), rg_lru),
]

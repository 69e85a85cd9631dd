"""OLMo hybrid from the tensors of its file, position by position, in NumPy."""

import numpy as np


def logits(tensors, config, tokens):
    """Of one sequence: `(time, vocabulary)`."""
    x = tensors["model.embed_tokens.weight"][tokens]
    for i, kind in enumerate(config["layer_types"]):
        prefix = f"model.layers.{i}."
        t = {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
        eps = config["rms_norm_eps"]
        if kind == "linear_attention":
            x = x + _delta_net(t, config, _rms(x, t["attention_layer_norm.weight"], eps))
            x = x + _mlp(t, _rms(x, t["feedforward_layer_norm.weight"], eps))
        else:
            x = x + _rms(_attention(t, config, x), t["post_attention_layernorm.weight"], eps)
            x = x + _rms(_mlp(t, x), t["post_feedforward_layernorm.weight"], eps)
    x = _rms(x, tensors["model.norm.weight"], config["rms_norm_eps"])
    return x @ tensors["lm_head.weight"].T


def _delta_net(t, config, x):
    heads, head = config["linear_num_value_heads"], config["linear_value_head_dim"]
    share = heads // config["linear_num_key_heads"]
    by_head = {}
    for part in "qkv":
        channels = _silu(_convolve(x @ t[f"linear_attn.{part}_proj.weight"].T, t, part))
        size = head if part == "v" else config["linear_key_head_dim"]
        by_head[part] = channels.reshape(len(x), -1, size)
        if part != "v":
            norm = np.sqrt((by_head[part] ** 2).sum(-1, keepdims=True) + 1e-6)
            by_head[part] = np.repeat(by_head[part] / norm, share, axis=1)
    beta = 2 / (1 + np.exp(-x @ t["linear_attn.b_proj.weight"].T))
    rate = np.log1p(np.exp(x @ t["linear_attn.a_proj.weight"].T + t["linear_attn.dt_bias"]))
    decay = np.exp(-np.exp(t["linear_attn.A_log"]) * rate)
    y = np.zeros((len(x), heads, head))
    for h in range(heads):
        q, k, v = (by_head[part][:, h] for part in "qkv")
        memory = np.zeros((k.shape[-1], head))
        for s in range(len(x)):
            memory = decay[s, h] * memory
            memory = memory + beta[s, h] * np.outer(k[s], v[s] - memory.T @ k[s])
            y[s, h] = memory.T @ q[s] / np.sqrt(q.shape[-1])
    y = _rms(y, t["linear_attn.o_norm.weight"], 1e-5).reshape(len(x), -1)
    return y * _silu(x @ t["linear_attn.g_proj.weight"].T) @ t["linear_attn.o_proj.weight"].T


def _convolve(x, t, part):
    taps = t[f"linear_attn.{part}_conv1d.weight"][:, 0].T
    padded = np.concatenate([np.zeros((len(taps) - 1, x.shape[1])), x])
    return sum(tap * padded[i : i + len(x)] for i, tap in enumerate(taps))


def _attention(t, config, x):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q, k, v = (x @ t[f"self_attn.{part}_proj.weight"].T for part in "qkv")
    q = _rms(q, t["self_attn.q_norm.weight"], config["rms_norm_eps"]).reshape(len(x), heads, -1)
    k = _rms(k, t["self_attn.k_norm.weight"], config["rms_norm_eps"]).reshape(len(x), kv_heads, -1)
    v = v.reshape(len(x), kv_heads, -1)
    y = np.zeros_like(q)
    for h in range(heads):
        g = h // (heads // kv_heads)
        scores = q[:, h] @ k[:, g].T / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y[:, h] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, g]
    return y.reshape(len(x), -1) @ t["self_attn.o_proj.weight"].T


def _mlp(t, x):
    gate, up, down = (t[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return _silu(x @ gate.T) * (x @ up.T) @ down.T


def _rms(x, weight, eps):
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def _silu(x):
    return x / (1 + np.exp(-x))

"""Attention by its definition: every score is materialised."""

import jax
import jax.numpy as jnp

from ...precision import upcast
from .case import Rules


def reference_attention(q, k, v, segment_ids, mask, spans, rules: Rules):
    """As `attention`; masked scores are -inf, and a query without a key gets zeros."""
    time, heads, head = q.shape
    keys, kv_heads, _ = k.shape
    q = upcast(q).reshape(time, kv_heads, heads // kv_heads, head)
    scores = jnp.einsum("tkgd,skd->kgts", q, upcast(k)) * rules.scale
    if rules.soft_cap is not None:
        scores = rules.soft_cap * jnp.tanh(scores / rules.soft_cap)
    seen = rules.visible(jnp.arange(time), jnp.arange(keys))
    if spans is not None:
        seen = seen | ((spans[rules.offset :, None] == spans[None, :]) & (spans >= 0)[None, :])
    if segment_ids is not None:
        seen = seen & (segment_ids[rules.offset :, None] == segment_ids[None, :])
    if mask is not None:
        seen = seen & mask[None, :]
    scores = jnp.where(seen, scores, -jnp.inf)
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(highest), highest, 0.0))
    total = jnp.sum(weights, axis=-1)
    y = jnp.einsum("kgts,skd->kgtd", weights, upcast(v))
    y = y / jnp.where(total > 0, total, 1.0)[..., None]
    return y.transpose(2, 0, 1, 3).reshape(time, heads, -1)

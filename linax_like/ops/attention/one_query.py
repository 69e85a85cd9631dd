"""Attention of one query, as in decoding: no blocks, and softmax along the last axis, which is fast.

y = Σ_s softmax(scale · q · k[s]) v[s]
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...precision import upcast


def attend_once(
    q: Float[Array, "heads head"],
    k: Float[Array, "keys kv_heads head"],
    v: Float[Array, "keys kv_heads value"],
    mask: Bool[Array, " keys"],
    *,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "heads value"]:
    """As `attention` of a single query, which sees every key but those that are hidden.

    - `mask`: False where a key is hidden, of which one at least is not. Hidden values are finite.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    grouped = upcast(q).reshape(k.shape[1], -1, q.shape[-1])
    scores = jnp.einsum("kgd,skd->kgs", grouped, upcast(k)) * scale
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
    return jnp.einsum("kgs,skd->kgd", weights, upcast(v)).reshape(len(q), -1).astype(q.dtype)

"""Attention of one query, as in decoding: keys and values are read once, where they are.

y = Σ_s softmax(scale · q · k[s]) v[s]
"""

from functools import partial

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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    # Batched products would move the heads in front first: on a CPU that takes longer than to read.
    sums, products = (
        partial(_attend, multiply=multiply, soft_cap=soft_cap, scale=scale)
        for multiply in ((_scores_by_sums, _read_by_sums), (_scores, _read))
    )
    return jax.lax.platform_dependent(q, k, v, mask, cpu=sums, default=products)


def _attend(q, k, v, mask, *, multiply, soft_cap, scale):
    score, read = multiply
    grouped = upcast(q).reshape(k.shape[1], -1, q.shape[-1])
    scores = score(upcast(k), grouped) * scale
    scores = scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=0)
    return read(upcast(v), weights).reshape(len(q), -1).astype(q.dtype)


def _scores(k, q):
    return jnp.einsum("skd,kgd->skg", k, q)


def _read(v, weights):
    return jnp.einsum("skd,skg->kgd", v, weights)


def _scores_by_sums(k, q):
    return jnp.sum(k[:, :, None] * q, axis=-1)


def _read_by_sums(v, weights):
    return jnp.sum(v[:, :, None] * weights[..., None], axis=0)

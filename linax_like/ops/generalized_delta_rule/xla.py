"""The recurrence in chunks, as products of matrices.

With ℓ the running sum of the log decays in a chunk, ℓ⁻ that before each position, S the state that
enters the chunk, and M_xy the products of x and y with the decays between them (for a, which looks
before the decay of its position, up to ℓ⁻), what a finds at all positions of the chunk is

    U  = (I - M_ab)⁻¹ ((A ⊙ exp(ℓ⁻)) S + M_ak V)
    Y  = (Q ⊙ exp(ℓ)) S + M_qb U + M_qk V
    S' = diag(exp(ℓ[-1])) S + (B ⊙ exp(ℓ[-1] - ℓ))ᵀ U + (K ⊙ exp(ℓ[-1] - ℓ))ᵀ V
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...precision import einsum
from ..decayed_scores import decayed_scores
from ..matrix_memory import chunk_recurrence, Recurrence
from ..triangular import unit_triangular_inverse
from .reference import generalized_delta_rule_step


def chunked_generalized_delta_rule(state, q, k, v, a, b, log_decay, chunk):
    """As `sequential_generalized_delta_rule`."""
    recurrence = Recurrence(generalized_delta_rule_step, _prepare, _advance)
    return chunk_recurrence(recurrence, chunk, state, (q, k, v, a, b, log_decay))


class Prepared(NamedTuple):
    """Per head; `size` is that of a chunk."""

    look: Array  # what U has of S, (I - M_ab)⁻¹ (A ⊙ exp(ℓ⁻)): (size, key)
    found: Array  # and of V: (size, value)
    q: Array  # Q ⊙ exp(ℓ): (size, key)
    mix: Array  # M_qb: (size, size)
    y: Array  # M_qk V: (size, value)
    through: Array  # exp(ℓ[-1]): (key,)
    b: Array  # B ⊙ exp(ℓ[-1] - ℓ): (size, key)
    added: Array  # (K ⊙ exp(ℓ[-1] - ℓ))ᵀ V: (key, value)


def _prepare(chunk) -> Prepared:
    q, k, v, a, b, log_decay = chunk
    dtype = v.dtype
    looking = _from_next(a)  # from the position before, where a's decays end
    scores, since_start, until_end = decayed_scores(
        jnp.stack([looking, q]), jnp.stack([b, k]), log_decay
    )
    ab, ak = (_from_previous(z) for z in scores[0])
    qb, qk = scores[1].astype(dtype)
    before = _from_previous(since_start, at_start=1.0)
    inverse = unit_triangular_inverse(-ab).astype(dtype)
    found = einsum("hti,hiv->htv", ak.astype(dtype), v)
    return Prepared(
        look=einsum("hti,hic->htc", inverse, (a * before).astype(dtype)).astype(dtype),
        found=einsum("hti,hiv->htv", inverse, found.astype(dtype)),
        q=(q * since_start).astype(dtype),
        mix=qb,
        y=einsum("hti,hiv->htv", qk, v),
        through=since_start[:, -1],
        b=(b * until_end).astype(dtype),
        added=einsum("htc,htv->hcv", (k * until_end).astype(dtype), v),
    )


def _advance(state, chunk: Prepared):
    dtype = chunk.q.dtype
    entering = state.astype(dtype)
    found = (chunk.found + einsum("htc,hcv->htv", chunk.look, entering)).astype(dtype)
    y = (
        chunk.y
        + einsum("htc,hcv->htv", chunk.q, entering)
        + einsum("hti,hiv->htv", chunk.mix, found)
    )
    kept = chunk.through[:, :, None] * state
    return kept + chunk.added + einsum("htc,htv->hcv", chunk.b, found), y


def _from_next(z):
    return jnp.pad(z[:, 1:], ((0, 0), (0, 1), (0, 0)))


def _from_previous(z, at_start=0.0):
    return jnp.pad(z[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=at_start)

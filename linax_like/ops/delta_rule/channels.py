"""The recurrence with one decay per key channel in chunks, as products of matrices.

With ℓ the running sum of the log decays in a chunk, S the state that enters it, and M_xy the
products of x and y with the decays between them (https://arxiv.org/abs/2510.26692), what the chunk
writes by its keys is

    R  = (I + tril(β ⊙ M_kk, -1))⁻¹ β ⊙ (V - (K ⊙ exp(ℓ)) S)
    Y  = (Q ⊙ exp(ℓ)) S + M_qk R        S' = diag(exp(ℓ[-1])) S + (K ⊙ exp(ℓ[-1] - ℓ))ᵀ R
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...precision import einsum, upcast
from ..decayed_scores import decayed_scores
from ..matrix_memory import chunk_recurrence, Recurrence
from ..triangular import unit_triangular_inverse, unit_triangular_solve
from .reference import delta_rule_step


def channelwise_delta_rule(state, q, k, v, beta, log_decay, chunk):
    """As `sequential_delta_rule`."""
    recurrence = Recurrence(delta_rule_step, _prepare, _advance)
    return chunk_recurrence(recurrence, chunk, state, (q, k, v, beta, log_decay))


class Prepared(NamedTuple):
    """Per head; `size` is that of a chunk."""

    q: Array  # Q ⊙ exp(ℓ): (size, key)
    removed: Array  # K ⊙ exp(ℓ): (size, key)
    added: Array  # K ⊙ exp(ℓ[-1] - ℓ): (size, key)
    values: Array  # (size, value)
    beta: Array  # (size, 1)
    scores: Array  # M_qk: (size, size)
    lower: Array  # β ⊙ M_kk: (size, size)
    inverse: Array  # (I + tril(β ⊙ M_kk, -1))⁻¹: (size, size)
    through: Array  # exp(ℓ[-1]): (key,)


def _prepare(chunk) -> Prepared:
    q, k, v, beta, log_decay = chunk
    dtype, beta = v.dtype, upcast(beta)[:, :, None]
    (of_k, of_q), since_start, until_end = decayed_scores(jnp.stack([k, q]), k[None], log_decay)
    lower = beta * of_k[0]
    return Prepared(
        q=(q * since_start).astype(dtype),
        removed=(k * since_start).astype(dtype),
        added=(k * until_end).astype(dtype),
        values=v,
        beta=beta,
        scores=of_q[0].astype(dtype),
        lower=lower,
        inverse=jax.lax.stop_gradient(unit_triangular_inverse(lower)),
        through=since_start[:, -1],
    )


def _advance(state, chunk: Prepared):
    dtype = chunk.q.dtype
    entering = state.astype(dtype)
    right = chunk.beta * (chunk.values - einsum("htc,hcv->htv", chunk.removed, entering))
    written = unit_triangular_solve(chunk.lower, chunk.inverse, right).astype(dtype)
    y = einsum("htc,hcv->htv", chunk.q, entering) + einsum("hti,hiv->htv", chunk.scores, written)
    return chunk.through[:, :, None] * state + einsum("htc,htv->hcv", chunk.added, written), y

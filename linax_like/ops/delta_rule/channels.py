"""The recurrence with one decay per key channel in chunks, as products of matrices.

With ℓ the running sum of the log decays in a chunk, S the state that enters it, and M_xy the
products of x and y with the decays between them (https://arxiv.org/abs/2510.26692), what the chunk
writes by its keys is

    R  = (I + tril(β ⊙ M_kk, -1))⁻¹ β ⊙ (V - (K ⊙ exp(ℓ)) S)
    Y  = (Q ⊙ exp(ℓ)) S + M_qk R        S' = diag(exp(ℓ[-1])) S + (K ⊙ exp(ℓ[-1] - ℓ))ᵀ R
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ...precision import einsum
from ..decayed_scores import decayed_scores
from ..matrix_memory import chunk_recurrence, Recurrence
from ..triangular import unit_triangular_inverse
from .reference import delta_rule_step


def channelwise_delta_rule(state, q, k, v, beta, log_decay, chunk):
    """As `sequential_delta_rule`."""
    recurrence = Recurrence(delta_rule_step, _prepare, _advance)
    return chunk_recurrence(recurrence, chunk, state, (q, k, v, beta, log_decay))


class Prepared(NamedTuple):
    """Per head; `size` is that of a chunk."""

    write: Array  # what R has of V: (size, value)
    erase: Array  # and of -S: (size, key)
    q: Array  # Q ⊙ exp(ℓ): (size, key)
    mix: Array  # M_qk: (size, size)
    through: Array  # exp(ℓ[-1]): (key,)
    k: Array  # K ⊙ exp(ℓ[-1] - ℓ): (size, key)


def _prepare(chunk) -> Prepared:
    q, k, v, beta, log_decay = chunk
    dtype, beta = v.dtype, beta[:, :, None]
    (of_k, of_q), since_start, until_end = decayed_scores(jnp.stack([k, q]), k[None], log_decay)
    inverse = unit_triangular_inverse(beta * of_k[0]).astype(dtype)
    return Prepared(
        write=einsum("hti,hiv->htv", inverse, (beta * v).astype(dtype)),
        erase=einsum("hti,hic->htc", inverse, (beta * k * since_start).astype(dtype)).astype(
            dtype
        ),
        q=(q * since_start).astype(dtype),
        mix=of_q[0].astype(dtype),
        through=since_start[:, -1],
        k=(k * until_end).astype(dtype),
    )


def _advance(state, chunk: Prepared):
    dtype = chunk.q.dtype
    entering = state.astype(dtype)
    written = (chunk.write - einsum("htc,hcv->htv", chunk.erase, entering)).astype(dtype)
    y = einsum("htc,hcv->htv", chunk.q, entering) + einsum("hti,hiv->htv", chunk.mix, written)
    return chunk.through[:, :, None] * state + einsum("htc,htv->hcv", chunk.k, written), y

"""The recurrence in chunks, as products of matrices.

With ℓ the running sum of the log decays in a chunk, S the state that enters it, and M the products
of its q and k with the decays between them,

    Y = (Q ⊙ exp(ℓ)) S + M V        S' = diag(exp(ℓ[-1])) S + (K ⊙ exp(ℓ[-1] - ℓ))ᵀ V
"""

from typing import NamedTuple

from jaxtyping import Array

from ...precision import einsum
from ..decayed_scores import decayed_scores
from ..matrix_memory import chunk_recurrence, Recurrence


def chunked_gated_linear_attention(state, q, k, v, log_decay, chunk):
    """As `sequential_gated_linear_attention`."""
    recurrence = Recurrence(None, _prepare, _advance)
    return chunk_recurrence(recurrence, chunk, state, (q, k, v, log_decay))


class Prepared(NamedTuple):
    q: Array  # Q ⊙ exp(ℓ): (heads, size, key)
    through: Array  # exp(ℓ[-1]): (heads, key)
    y: Array  # M V: (heads, size, value)
    added: Array  # (K ⊙ exp(ℓ[-1] - ℓ))ᵀ V: (heads, key, value)


def _prepare(chunk) -> Prepared:
    q, k, v, log_decay = chunk
    scores, since_start, until_end = decayed_scores(q[None], k[None], log_decay)
    y = einsum("hti,hiv->htv", scores[0, 0].astype(v.dtype), v)
    added = einsum("htc,htv->hcv", (k * until_end).astype(v.dtype), v)
    return Prepared((q * since_start).astype(q.dtype), since_start[:, -1], y, added)


def _advance(state, prepared: Prepared):
    y = prepared.y + einsum("htc,hcv->htv", prepared.q, state.astype(prepared.q.dtype))
    return prepared.through[:, :, None] * state + prepared.added, y

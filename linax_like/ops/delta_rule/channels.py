"""The recurrence with one decay per key channel in chunks, as products of matrices.

With ℓ the running sum of the log decays in a chunk, S the state that enters it, and M_xy the
products of x and y with the decays between them (https://arxiv.org/abs/2510.26692), what the chunk
writes by its keys is

    R  = (I + tril(β ⊙ M_kk, -1))⁻¹ β ⊙ (V - (K ⊙ exp(ℓ)) S)
    Y  = (Q ⊙ exp(ℓ)) S + M_qk R        S' = diag(exp(ℓ[-1])) S + (K ⊙ exp(ℓ[-1] - ℓ))ᵀ R
"""

import jax.numpy as jnp

from ...precision import upcast
from ..decayed_scores import decayed_scores
from ..matrix_memory import chunk_recurrence, Recurrence
from ..triangular import inverse_for_solve
from .reference import delta_rule_step
from .xla import advance, Prepared


def channelwise_delta_rule(state, q, k, v, beta, log_decay, chunk):
    """As `sequential_delta_rule`."""
    recurrence = Recurrence(delta_rule_step, _prepare, advance)
    return chunk_recurrence(recurrence, chunk, state, (q, k, v, beta, log_decay))


def _prepare(chunk) -> Prepared:
    q, k, v, beta, log_decay = chunk
    dtype, beta = v.dtype, upcast(beta)[:, :, None]
    (of_k, of_q), since_start, until_end = decayed_scores(jnp.stack([k, q]), k[None], log_decay)
    lower = beta * of_k[0]
    return Prepared(
        queries=(q * since_start).astype(dtype),
        removed=(k * since_start).astype(dtype),
        added=(k * until_end).astype(dtype),
        values=v,
        beta=beta,
        scores=of_q[0].astype(dtype),
        lower=lower,
        inverse=inverse_for_solve(lower),
        kept=since_start[:, -1, :, None],
    )

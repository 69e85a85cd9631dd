"""The delta rule in chunks, as products of matrices (https://arxiv.org/abs/2406.06484).

What a chunk adds is R, with its keys. Every row of R needs those before it, which is a triangular
system. With ℓ the running sum of the log decays, S the state that enters and n the chunk's length

    D[i,j] = exp(ℓ[i] - ℓ[j])   i ≥ j              A  = β ⊙ K Kᵀ ⊙ D   below its diagonal
    (I + A) R = β ⊙ (V - exp(ℓ) ⊙ K S)
    Y  = exp(ℓ) ⊙ Q S + (Q Kᵀ ⊙ D) R               S' = exp(ℓ[n]) S + (exp(ℓ[n] - ℓ) ⊙ K)ᵀ R

(https://arxiv.org/abs/2412.06464). Without decays every exp is 1, and none is computed. With decays per
key channel only what a chunk brings is computed otherwise (`channels`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...precision import einsum, upcast
from ..decays import decays_of
from ..matrix_memory import chunk_recurrence, Recurrence
from ..triangular import inverse_for_solve, unit_triangular_solve
from .reference import delta_rule_step


def chunked_delta_rule(state, q, k, v, beta, log_decay, chunk):
    """As `sequential_delta_rule`, with no decay or one per head."""
    recurrence = Recurrence(delta_rule_step, _prepare, advance)
    return chunk_recurrence(recurrence, chunk, state, (q, k, v, beta, log_decay))


class Prepared(NamedTuple):
    """A chunk without its state."""

    queries: Float[Array, "heads size key"]  # exp(ℓ) ⊙ Q
    removed: Float[Array, "heads size key"]  # exp(ℓ) ⊙ K
    added: Float[Array, "heads size key"]  # exp(ℓ[n] - ℓ) ⊙ K
    values: Float[Array, "heads size value"]
    beta: Float[Array, "heads size 1"]
    scores: Float[Array, "heads size size"]  # Q Kᵀ ⊙ D
    lower: Float[Array, "heads size size"]  # A
    inverse: Float[Array, "heads size size"]  # (I + A)⁻¹
    kept: Float[Array, "heads one_or_key 1"] | None  # exp(ℓ[n])


def _prepare(chunk) -> Prepared:
    q, k, v, beta, log_decay = chunk
    beta = upcast(beta)[..., None]
    scores, lower = einsum("hik,hjk->hij", q, k), beta * _gram(k)
    removed, added, kept = k, k, None
    if log_decay is None:
        scores = jnp.tril(scores)
    else:
        decays = decays_of(log_decay)
        scores, lower = decays.between * scores, decays.between * lower
        q, removed = (_as(k, decays.since_start[..., None] * z) for z in (q, k))
        added = _as(k, decays.until_end[..., None] * k)
        kept = decays.through[..., None, None]
    inverse = inverse_for_solve(lower)
    return Prepared(q, removed, added, v, beta, _as(k, scores), lower, inverse, kept)


@jax.custom_jvp
def _gram(k):
    """K Kᵀ. It is symmetric: one product in its gradient is enough."""
    return einsum("hik,hjk->hij", k, k)


@_gram.defjvp
def _gram_tangent(primals, tangents):
    (k,), (dk,) = primals, tangents
    product = einsum("hik,hjk->hij", dk, k)
    return _gram(k), product + product.mT


def advance(state, prepared: Prepared):
    """The state after a chunk, and its outputs."""
    queries, removed, added, values, beta, scores, lower, inverse, kept = prepared
    entering = _as(values, state)
    right = beta * (values - einsum("hik,hkv->hiv", removed, entering))
    changes = _as(values, unit_triangular_solve(lower, inverse, right))
    y = einsum("hik,hkv->hiv", queries, entering) + einsum("hij,hjv->hiv", scores, changes)
    state = state if kept is None else kept * state
    return state + einsum("hik,hiv->hkv", added, changes), y


def _as(like, x):
    return x.astype(like.dtype)

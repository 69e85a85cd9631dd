"""Products of rows and columns between which every channel decays at its own rate:

    M[t,i] = Σ_c rows[t,c] columns[i,c] exp(g[i+1,c] + … + g[t,c])     i ≤ t, and 0 above

Written as exp(ℓ[t] - ℓ[i]) with running sums ℓ of the log decays g, this loses its digits; as exp(ℓ)
beside exp(-ℓ) it overflows. But any t > i lie in the second and the first half of one of the blocks
that halving the time gives. The decay from i to the middle of that block, and from there to t, are
factors of at most 1: one plain product of matrices for the lower left quarter of every block.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..precision import einsum


_SCORES = "rhbtc,shbic->rshbti"


class DecayedScores(NamedTuple):
    scores: Float[Array, "rows columns heads time time"]  # M, for all rows beside all columns
    since_start: Float[Array, "heads time key"]  # exp(g[0] + … + g[t])
    until_end: Float[Array, "heads time key"]  # exp(g[t+1] + … + g[-1])


def decayed_scores(
    rows: Float[Array, "rows heads time key"],
    columns: Float[Array, "columns heads time key"],
    log_decay: Float[Array, "heads time key"],
) -> DecayedScores:
    """M, summed in at least float32, and the decays from the start and to the end of the time.

    - `log_decay`: at most 0, finite.
    """
    blocks = (z[..., None, :, :] for z in (rows, columns, log_decay))
    scores, since_start, until_end = (z.squeeze(-3) for z in _by_halves(*blocks))
    return DecayedScores(scores, jnp.exp(since_start), jnp.exp(until_end))


def _by_halves(rows, columns, log_decay):
    """M of every block, and the logarithms of the other two. Shapes are (…, blocks, time, key)."""
    time, dtype = log_decay.shape[-2], rows.dtype
    if time == 1:
        return einsum(_SCORES, rows, columns), log_decay, jnp.zeros_like(log_decay)
    if time % 2:
        scores, since_start, until_end = _by_halves(*map(_pad, (rows, columns, log_decay)))
        return scores[..., :-1, :-1], since_start[..., :-1, :], until_end[..., :-1, :]
    halves = [_halve(z) for z in (rows, columns, log_decay)]
    within, since_start, until_end = (_pair(z) for z in _by_halves(*halves))
    after = _pair(halves[0])[1] * jnp.exp(since_start[1])
    before = _pair(halves[1])[0] * jnp.exp(until_end[0])
    across = einsum(_SCORES, after.astype(dtype), before.astype(dtype))
    above = jnp.concatenate([within[0], jnp.zeros_like(across)], axis=-1)
    below = jnp.concatenate([across, within[1]], axis=-1)
    first, second = (z[..., -1:, :] for z in since_start)
    return (
        jnp.concatenate([above, below], axis=-2),
        jnp.concatenate([since_start[0], since_start[1] + first], axis=-2),
        jnp.concatenate([until_end[0] + second, until_end[1]], axis=-2),
    )


def _halve(z):
    """(…, blocks, time, key) → (…, blocks · 2, time / 2, key)"""
    *outer, blocks, time, key = z.shape
    return z.reshape(*outer, 2 * blocks, time // 2, key)


def _pair(z):
    """The first and the second halves of blocks."""
    z = z.reshape(*z.shape[:-3], -1, 2, *z.shape[-2:])
    return z[..., 0, :, :], z[..., 1, :, :]


def _pad(z):
    return jnp.pad(z, ((0, 0),) * (z.ndim - 2) + ((0, 1), (0, 0)))

"""What one decay per position leaves of one place in a chunk at another."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Decays(NamedTuple):
    """With ℓ the running sum of the log decays, and n its last place."""

    between: Float[Array, "*shape size size"]  # exp(ℓ[i] - ℓ[j]), and 0 where i < j
    since_start: Float[Array, "*shape size"]  # exp(ℓ)
    until_end: Float[Array, "*shape size"]  # exp(ℓ[n] - ℓ)
    through: Float[Array, "*shape"]  # exp(ℓ[n])


def decays_of(log_decay: Float[Array, "*shape size"]) -> Decays:
    # Differences of running sums cancel. Those of the multiples of 1/16 are exact, as long as a sum is
    # below 2^20 in float32, and what is left sums up to little. What leaves nothing of exp adds no more
    # than it has to: a chunk can forget thousands of times.
    nothing = 1.25 * math.log(jnp.finfo(log_decay.dtype).tiny)  # below subnormal numbers too
    log_decay = jnp.maximum(log_decay, nothing)
    coarse = jnp.round(16 * jax.lax.stop_gradient(log_decay)) / 16
    coarse, fine = (_running_sum(z) for z in (coarse, log_decay - coarse))
    ago = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    seen = jnp.tril(jnp.ones(ago.shape[-2:], bool))
    between = jnp.exp(jnp.where(seen, ago, -jnp.inf))
    since_start = jnp.exp(coarse + fine)
    return Decays(between, since_start, between[..., -1, :], since_start[..., -1])


def _running_sum(x):
    return jax.lax.cumsum(x, x.ndim - 1)

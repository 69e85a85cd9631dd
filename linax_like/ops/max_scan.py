"""A recurrence of sums and maxima: `m[t] = max(m[t-1] + a[t], b[t])`.

Two positions in a row are one of the same kind, with `a₁ + a₂` and `max(b₁ + a₂, b₂)`: it is an
associative scan. That is fast enough everywhere for the few numbers per position it is made for.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .rows import expand


def max_scan(
    a: Float[Array, " time *state"],
    b: Float[Array, " time *state"],
    m0: Float[Array, "*state"],
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, " time *state"], Float[Array, " time *state"]]:
    """m before each position, and after it.

    - `m0`: m before the first position.
    - `resets`: True where it is forgotten: m is `b[t]`.
    - `mask`: False where m passes unchanged.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`.
    """
    if len(a) == 0:
        return a, a
    if resets is not None:
        a = jnp.where(expand(resets, a), -jnp.inf, a)
    if mask is not None:
        a = jnp.where(expand(mask, a), a, 0.0)
        b = jnp.where(expand(mask, b), b, -jnp.inf)
    a, b = jax.lax.associative_scan(_in_a_row, (a, b))
    incoming = m0
    if axis_name is not None:
        shards = zip(*jax.lax.all_gather((a[-1], b[-1]), axis_name), strict=True)
        here = jax.lax.axis_index(axis_name)
        for i, (shard_a, shard_b) in enumerate(shards):
            incoming = jnp.where(here == i, m0, incoming)
            m0 = jnp.maximum(m0 + shard_a, shard_b)
    after = jnp.maximum(incoming + a, b)
    return jnp.concatenate([incoming[None], after[:-1]]), after


def _in_a_row(first, second):
    a, b = first
    return a + second[0], jnp.maximum(b + second[0], second[1])

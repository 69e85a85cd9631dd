"""Padding moved behind the sequence, so that an operator which knows nothing of it can run."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def padding_last(mask: Bool[Array, " time"]) -> tuple[Int[Array, " time"], Int[Array, " time"]]:
    """`x[order]` has the real positions first; `y[rank]` puts a result back where they were.

    - `mask`: False at padding. There `y[rank]` holds values of other positions: blank them.
    """
    order = jnp.argsort(~mask, stable=True)
    rank = jnp.maximum(jnp.cumsum(mask) - 1, 0)
    return order, rank

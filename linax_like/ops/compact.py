"""Padding moved behind the sequence, so that an operator which knows nothing of it can run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


class Permutation(NamedTuple):
    order: Int[Array, " time"]  # where each entry comes from
    inverse: Int[Array, " time"]

    @property
    def undone(self) -> "Permutation":
        return Permutation(self.inverse, self.order)


def padding_last(mask: Bool[Array, " time"]) -> Permutation:
    """The real positions in their order, and behind them the padding, where `mask` is False."""
    order = jnp.argsort(~mask, stable=True)
    behind = jnp.sum(mask) + jnp.cumsum(~mask) - 1
    return Permutation(order, jnp.where(mask, jnp.cumsum(mask) - 1, behind))


@jax.custom_vjp
def permute(
    x: Shaped[Array, " time *shape"], permutation: Permutation
) -> Shaped[Array, " time *shape"]:
    """`x[order]`, whose gradient is the inverse permutation rather than scattered additions."""
    return x[permutation.order]


permute.defvjp(
    lambda x, permutation: (x[permutation.order], permutation.inverse),
    lambda inverse, g: (g[inverse], None),
)


def arrange(
    x: Shaped[Array, " time *shape"], permutation: Permutation | None
) -> Shaped[Array, " time *shape"]:
    """`x[order]` of what has no gradient; as it is without a permutation."""
    return x if permutation is None else x[permutation.order]

"""Padding moved behind the rest, for mixers to which the distance of two positions matters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..context import SequenceContext
from ..types import Signal


def padding_last(
    x: Signal, context: SequenceContext
) -> tuple[Signal, SequenceContext, tuple[Array, Array] | None]:
    """The sequence with its padding moved behind the rest, so that windows count real positions.

    Beside it what `reorder` needs to undo this.
    """
    if context.mask is None:
        return x, context, None
    mask = context.mask
    order = jnp.argsort(~mask, stable=True)
    behind = jnp.sum(mask) + jnp.cumsum(~mask) - 1
    place = jnp.where(mask, jnp.cumsum(mask) - 1, behind)
    return _permute(x, order, place), context.map_time(lambda value: value[order]), (place, order)


def reorder(y: Signal, permutation: tuple[Array, Array] | None) -> Signal:
    return y if permutation is None else _permute(y, *permutation)


@jax.custom_vjp
def _permute(x, order, inverse):
    """`x[order]`, whose gradient is the inverse permutation rather than scattered additions."""
    return x[order]


_permute.defvjp(
    lambda x, order, inverse: (x[order], inverse), lambda inverse, g: (g[inverse], None, None)
)

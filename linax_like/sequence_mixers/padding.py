"""Padding moved behind the rest, for mixers to which the distance of two positions matters."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jaxtyping import Array, PyTree, Shaped

from ..context import SequenceContext
from ..ops.compact import padding_last, Permutation, permute
from ..types import Signal


Sequences = TypeVar("Sequences", bound=PyTree)  # one array over time, or several


def compact(
    x: Sequences, context: SequenceContext
) -> tuple[Sequences, SequenceContext, Permutation | None]:
    """Sequences and their context with the padding last, and what `reorder` needs to undo this."""
    if context.mask is None:
        return x, context, None
    permutation = padding_last(context.mask)
    moved = context.map_time(lambda value: value[permutation.order])
    return jax.tree.map(lambda leaf: permute(leaf, permutation), x), moved, permutation


def reorder(
    y: Shaped[Array, " time *shape"], permutation: Permutation | None
) -> Shaped[Array, " time *shape"]:
    """The outputs where their inputs were."""
    return y if permutation is None else permute(y, permutation.undone)


def is_convolution(context: SequenceContext | None) -> bool:
    """Whether a linear recurrence is one convolution here: one document, sampled regularly."""
    if context is None:
        return True
    return context.segment_ids is None and context.timesteps is None and context.axis_name is None


def convolve(operator: Callable[[Signal], Signal], x: Signal, context: SequenceContext) -> Signal:
    """What a convolution makes of all positions but padding."""
    real, _, permutation = compact(x, context)
    return reorder(operator(real), permutation)

"""Padding moved behind the rest, for mixers to which the distance of two positions matters."""

from ..context import SequenceContext
from ..ops.compact import padding_last, Permutation, permute
from ..types import Signal


def compact(
    x: Signal, context: SequenceContext
) -> tuple[Signal, SequenceContext, Permutation | None]:
    """The sequence and its context with the padding last, and what `reorder` needs to undo this."""
    if context.mask is None:
        return x, context, None
    permutation = padding_last(context.mask)
    moved = context.map_time(lambda value: value[permutation.order])
    return permute(x, permutation), moved, permutation


def reorder(y: Signal, permutation: Permutation | None) -> Signal:
    """The outputs where their inputs were."""
    return y if permutation is None else permute(y, permutation.undone)

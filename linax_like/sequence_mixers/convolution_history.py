"""Long convolutions as recurrences: the state is the past itself, what a convolution has read so far.

The history holds the current document's inputs, the newest last, and zeros where there were none. Its
size is fixed when the state is made; a document that outgrows it yields NaN, so that nothing is
forgotten unnoticed.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..context import SequenceContext
from ..ops.grid_conv import Boundary, grid_conv
from ..ops.whole_sequence import per_document, WholeSequence
from ..types import Frame, Signal


class ConvolutionState(NamedTuple):
    """The current document's past.

    - `history`: the inputs of the convolution.
    - `length`: positions of the document so far.
    """

    history: Float[Array, "capacity features"]
    length: Int[Array, ""]


def whole_sequence(
    owner: eqx.Module, length: int, context: SequenceContext, boundary: Boundary
) -> WholeSequence:
    """How a sequence lies in time. On a circle padding stays where it is, and there is one document.

    **Raises:** `ValueError` for several documents on a circle.
    """
    mask = context.mask
    if boundary == "circular":
        mask = None
        if context.segment_ids is not None:
            raise ValueError(
                f"`{type(owner).__name__}` has a circular boundary, which several documents cannot "
                "share: leave `context.segment_ids` out, or give every document its own example."
            )
    return WholeSequence.of(length, context.resets(), mask, context.axis_name)


def convolve(
    past: Float[Array, "capacity features"],
    x: Signal,
    kernel: Float[Array, "lags features"],
    whole: WholeSequence,
    boundary: Boundary,
    max_documents: int,
) -> tuple[Float[Array, "capacity features"], Signal]:
    """The history after a chunk, and its convolution; every document by itself."""
    own = whole.own_features(past)
    signal = jnp.concatenate([own, whole.gather(x.astype(past.dtype))])
    kernel = whole.own_features(kernel)
    documents = whole.documents_after(len(past))
    operator = lambda x, kernel: grid_conv(x, kernel, (boundary,))
    if documents is None:
        y = operator(signal, kernel)
    else:
        y = per_document(operator, signal, kernel, documents, max_documents)
    past = whole.all_features(whole.last(signal, len(past)))
    return past, whole.scatter(y[len(own) :]).astype(x.dtype)


def convolve_step(
    past: Float[Array, "capacity features"], x: Frame, kernel: Float[Array, "capacity features"]
) -> tuple[Float[Array, "capacity features"], Frame]:
    """One position."""
    past = jnp.concatenate([past[1:], x[None].astype(past.dtype)])[: len(past)]
    y = jnp.sum(past.astype(kernel.dtype) * kernel[::-1], axis=0)
    return past, y.astype(x.dtype)


def nan_if_outgrown(
    y: Signal, context: SequenceContext, length: Int[Array, ""], capacity: int
) -> Signal:
    """`y`, but NaN where a document is longer than the history.

    - `length`: positions of the current document before this chunk.
    """
    position = context.replace(positions=None).positions_from(length, len(y))
    return context.blank_padding(jnp.where((position < capacity)[:, None], y, jnp.nan))


def gates_and_convolutions(v, gates, convolutions):
    """v ← convolution(v ⊙ gate) for one after the other, and at last v ⊙ the gate that is left.

    - `convolutions`: each returns a history and its result. The histories are returned as well.
    """
    *inner, last = gates
    histories = []
    for gate, convolution in zip(inner, convolutions, strict=True):
        history, v = convolution(v * gate)
        histories.append(history)
    return histories, v * last

"""Sequences and what is known about them, read backwards."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ..context import SequenceContext
from ..ops.next_real import next_real


def reverse(
    values: Shaped[Array, " time *shape"], axis_name: str | None
) -> Shaped[Array, " time *shape"]:
    """The last position first, over all devices that have a part of time."""
    values = values[::-1]
    if axis_name is None:
        return values
    last = jax.lax.axis_size(axis_name) - 1
    return jax.lax.ppermute(values, axis_name, [(i, last - i) for i in range(last + 1)])


def reversed_context(context: SequenceContext) -> SequenceContext:
    """What is known about the reversed sequence; every document begins where it ended."""
    changes: dict = {"previous_segment_id": None}
    if context.timesteps is not None:
        changes["timesteps"] = _until_next(context.timesteps, context)
    if context.positions is not None:
        changes["positions"] = -context.positions  # still rising
    context = context.replace(**changes)
    return context.map_time(lambda values: reverse(values, context.axis_name))


def _until_next(
    timesteps: Float[Array, " time"], context: SequenceContext
) -> Float[Array, " time"]:
    """Backwards, the time since the previous sample is what the next one was given.

    The last sample of a document, which has none, keeps its own.
    """
    ahead = partial(next_real, mask=context.mask, axis_name=context.axis_name)
    here = jnp.arange(len(timesteps))
    if context.axis_name is not None:
        here = here + len(timesteps) * jax.lax.axis_index(context.axis_name)
    goes_on = ahead(here) > here
    if context.mask is not None:
        goes_on &= ahead(context.mask)
    if context.segment_ids is not None:
        goes_on &= ahead(context.segment_ids) == context.segment_ids
    return jnp.where(goes_on, ahead(timesteps), timesteps)

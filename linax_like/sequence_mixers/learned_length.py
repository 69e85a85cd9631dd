"""What mixers share whose parameters say how long a sequence can be."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..context import SequenceContext
from .base import AbstractSequenceMixer


def require_length(
    mixer: AbstractSequenceMixer, x: Array, context: SequenceContext, max_length: int
) -> None:
    """**Raises:** `ValueError` if a sequence, without documents and padding, is too long."""
    if context.segment_ids is None and context.mask is None and len(x) > max_length:
        raise ValueError(
            f"`{type(mixer).__name__}` was built for at most `max_length={max_length}` positions. "
            f"Received {len(x)}. Build it with a larger `max_length`, or give it shorter sequences."
        )


def places(
    length: Int[Array, ""], context: SequenceContext, time: int
) -> tuple[Int[Array, " time"], Int[Array, " time"]]:
    """Each position's place in its document, and that document; 0 is the one that goes on.

    - `length`: positions of that one before these.
    """
    position = context.replace(positions=None).positions_from(length, time)
    resets = context.resets()
    if resets is None:
        return position, jnp.zeros((time,), jnp.int32)
    return position, jnp.cumsum(resets, dtype=jnp.int32)


def require_state_length(module: eqx.Module, requested: int, max_length: int) -> None:
    """**Raises:** `ValueError` if a state is to hold more positions than the module knows."""
    if requested > max_length:
        raise ValueError(
            f"`{type(module).__name__}` was built for at most `max_length={max_length}` positions: "
            f"`init_state` cannot take max_length={requested}. Build it with a larger `max_length`."
        )

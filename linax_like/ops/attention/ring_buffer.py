"""A ring buffer over the positions of one document: position p is in slot `p % capacity`.

Slots in which nothing of the current document is stored hold zeros.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


Buffer = Float[Array, "capacity kv_heads head"]


def chronological(capacity: int, length: Int[Array, ""]) -> tuple[Array, Bool[Array, " capacity"]]:
    """The slots from the oldest position to the latest, and whether each holds one.

    - `length`: how many positions the document has so far.
    """
    position = length - capacity + jnp.arange(capacity)
    return position % capacity, position >= 0


def append(
    buffer: Buffer,
    chunk: Float[Array, "time kv_heads head"],
    start: Int[Array, ""],
    length: Int[Array, ""],
    end: Int[Array, ""],
) -> Buffer:
    """The buffer after a chunk. What it held of the document before `start` stays if it fits.

    - `start`: the document's position at which the chunk's part of it begins, 0 for a new one.
    - `length`: the document's length after the chunk.
    - `end`: the index in the chunk after the document's last position there.
    """
    capacity = len(buffer)
    slot = jnp.arange(capacity)
    position = length - 1 - (length - 1 - slot) % capacity  # the latest one that the slot can hold
    index = jnp.clip(end - length + position, 0, len(chunk) - 1)
    taken = chunk[index].astype(buffer.dtype)
    kept = jnp.where((position >= start)[:, None, None], taken, buffer)
    return jnp.where((position >= 0)[:, None, None], kept, jnp.zeros_like(buffer))

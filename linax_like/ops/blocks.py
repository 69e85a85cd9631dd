"""A sequence cut into blocks of equal size, of which every document begins one of its own."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Blocks(NamedTuple):
    """Where the positions of a sequence are in its blocks.

    - `row`: which block of its document each block is, from 0.
    - `document`: the number of each block's document; -1 for a block that is not needed.
    - `source`, `filled`: the position at each place of a block, and whether there is one.
    - `slot`: for every position its place in the blocks laid end to end.
    - `position`: and its place in its document.
    """

    row: Int[Array, " blocks"]
    document: Int[Array, " blocks"]
    source: Int[Array, "blocks size"]
    filled: Bool[Array, "blocks size"]
    slot: Int[Array, " time"]
    position: Int[Array, " time"]

    @classmethod
    def of(
        cls,
        position: Int[Array, " time"],
        documents: Int[Array, " time"],
        mask: Bool[Array, " time"] | None,
        size: int,
        spare: int,
    ) -> "Blocks":
        """From each position's place in its document, and the document. Padding is last.

        - `spare`: how many blocks there may be beyond those of one document from its beginning.
        """
        time = len(position)
        count = min(-(-time // size) + spare, time)
        here = jnp.arange(time, dtype=jnp.int32)
        real = jnp.ones((time,), bool) if mask is None else mask
        starts = real & ((position % size == 0) | (here == 0))
        begins = jnp.sort(jnp.where(starts, here, time))
        begins = jnp.append(begins, jnp.full_like(begins[:1], time))
        first, end = begins[:count], jnp.minimum(begins[1 : count + 1], real.sum())
        index = jnp.minimum(first, time - 1)
        source = first[:, None] + jnp.arange(size) - (position[index] % size)[:, None]
        filled = (source >= first[:, None]) & (source < end[:, None])
        return cls(
            position[index] // size,
            jnp.where(first < time, documents[index], -1),
            jnp.clip(source, 0, time - 1),
            filled,
            (jnp.cumsum(starts, dtype=jnp.int32) - 1) * size + position % size,
            position,
        )

    def gather(self, x: Float[Array, "time features"]) -> Float[Array, "blocks size features"]:
        """The blocks of a sequence, with zeros where they are not filled."""
        return jnp.where(self.filled[..., None], x[self.source], 0)

    def scatter(
        self, y: Float[Array, "blocks size features"], limit: Int[Array, ""] | int
    ) -> Float[Array, "time features"]:
        """The sequence of the blocks; NaN where there is none, or a position is past the limit."""
        rows = y.reshape(-1, y.shape[-1])
        valid = (self.slot < len(rows)) & (self.position < limit)
        return jnp.where(valid[:, None], rows[jnp.clip(self.slot, 0, len(rows) - 1)], jnp.nan)

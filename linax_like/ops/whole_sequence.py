"""For operators that need the whole sequence in one place, without padding, to mix along time.

Where time is split over devices, each takes all of time for a part of the features instead: a
depthwise operator then runs as on one device, on an equal part of the work.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .compact import padding_last, Permutation, permute
from .varying import rows_from, vary_together


class WholeSequence(NamedTuple):
    """How the sequence that this device has a part of lies in time.

    - `length`: positions, padding included.
    - `real`: positions without padding. They come first, once `permutation` has moved them.
    - `permutation`: None without padding.
    - `documents`: the document of every position, counted from 0 for the first; None if there is one.
    - `continues`: whether the first position is of the same document as what came before it.
    - `axis_name`: the mesh axis over which time is split, or None.
    """

    length: int
    real: Int[Array, ""]
    permutation: Permutation | None
    documents: Int[Array, " whole"] | None
    continues: Bool[Array, ""]
    axis_name: str | None

    @classmethod
    def of(
        cls,
        length: int,
        resets: Bool[Array, " time"] | None,
        mask: Bool[Array, " time"] | None,
        axis_name: str | None,
    ) -> "WholeSequence":
        """From what a context says of this device's `length` positions."""
        if axis_name is not None:
            length = length * jax.lax.axis_size(axis_name)
            resets, mask = gather_time((resets, mask), axis_name)
        permutation, real = None, jnp.int32(length)
        if mask is not None:
            permutation, real = padding_last(mask), mask.sum(dtype=jnp.int32)
        if resets is None:
            return cls(length, real, permutation, None, jnp.bool_(True), axis_name)
        resets = resets if permutation is None else resets[permutation.order]
        documents = jnp.cumsum(resets, dtype=jnp.int32)
        return cls(length, real, permutation, documents - documents[0], ~resets[0], axis_name)

    def gather(self, x: Float[Array, "time features"]) -> Float[Array, "whole own"]:
        """All of time, the padding last, for this device's features.

        **Raises:** `ValueError` if the features cannot be divided evenly.
        """
        if self.axis_name is not None:
            devices = jax.lax.axis_size(self.axis_name)
            if x.shape[1] % devices:
                raise ValueError(
                    f"With time split over {devices} devices, each takes a part of the features: "
                    f"their number must be a multiple of {devices}. Received {x.shape[1]}."
                )
            x = jax.lax.all_to_all(x, self.axis_name, split_axis=1, concat_axis=0, tiled=True)
        return x if self.permutation is None else permute(x, self.permutation)

    def scatter(self, y: Float[Array, "whole own"]) -> Float[Array, "time features"]:
        """The inverse of `gather`."""
        y = y if self.permutation is None else permute(y, self.permutation.undone)
        if self.axis_name is None:
            return y
        return jax.lax.all_to_all(y, self.axis_name, split_axis=0, concat_axis=1, tiled=True)

    def own_features(self, x: Float[Array, "rows features"]) -> Float[Array, "rows own"]:
        """This device's features of what every device has."""
        if self.axis_name is None:
            return x
        size = x.shape[1] // jax.lax.axis_size(self.axis_name)
        start = size * jax.lax.axis_index(self.axis_name)
        x, start = vary_together(x, start)
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)

    def all_features(self, x: Float[Array, "rows own"]) -> Float[Array, "rows features"]:
        """The inverse of `own_features`."""
        if self.axis_name is None:
            return x
        return jax.lax.all_gather(x, self.axis_name, axis=1, tiled=True)

    def documents_after(self, past: int) -> Int[Array, " rows"] | None:
        """The documents of `past` earlier positions (-1 if they are another's) and of all here."""
        if self.documents is None:
            return None
        earlier = jnp.full((past,), jnp.where(self.continues, 0, -1), jnp.int32)
        return jnp.concatenate([earlier, self.documents])

    def last(self, rows: Float[Array, "rows own"], size: int) -> Float[Array, "size own"]:
        """Of rows that end with the whole sequence, the last `size`, and zeros before its document."""
        kept = rows_from(rows, self.real, size)
        documents = self.documents_after(size)
        if documents is None or size == 0:
            return kept
        documents = rows_from(documents, self.real, size)
        return jnp.where((documents == documents[-1])[:, None], kept, 0)

    def length_after(self, length: Int[Array, ""]) -> Int[Array, ""]:
        """How long the last document is, if what came before had `length` positions of the first."""
        if self.documents is None:
            return length + self.real
        is_real = jnp.arange(self.length) < self.real
        last = jnp.max(jnp.where(is_real, self.documents, 0))
        here = jnp.sum(is_real & (self.documents == last), dtype=jnp.int32)
        earlier = jnp.where(self.continues & (last == 0), length, 0)
        return jnp.where(self.real > 0, here + earlier, length)


def per_document(
    operator: Callable[[Array, Array], Array],
    x: Float[Array, "time features"],
    weights: Array,
    documents: Int[Array, " time"],
    max_documents: int,
) -> Float[Array, "time features"]:
    """`operator(x, weights)` of every document by itself: a Fourier transform cannot be reset.

    - `operator`: moves with its input, which is zero outside of the document.
    - `documents`: the number of every position's document, from 0; elsewhere the result is NaN.
    - `max_documents`: how many there can be. Each takes as much work as all of `x`.
    """

    @partial(jax.checkpoint, prevent_cse=False)
    def add(y, document):
        own = (documents == document)[:, None]
        alone = operator(jnp.where(own, x, 0), weights)
        return jnp.where(own, alone, y), None

    start, x, weights, documents = vary_together(jnp.full_like(x, jnp.nan), x, weights, documents)
    return jax.lax.scan(add, start, jnp.arange(max_documents))[0]


def gather_time(tree: PyTree, axis_name: str | None) -> PyTree:
    """Arrays with a value per position, from every device."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)

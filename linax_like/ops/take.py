"""Rows of a parameter, by an index that may differ between the examples of a batch."""

import jax
from jaxtyping import Array, Int, Shaped


def take(x: Shaped[Array, "..."], index: Int[Array, "..."], axis: int = 0) -> Shaped[Array, "..."]:
    """`x` at the index along one axis, clipped to what there is.

    Over an explicit mesh the result is laid out as the index, whose axes take that axis's place.
    """
    if index.ndim == 0:  # JAX would take a slice, which cannot be told its layout
        return take(x, index[None], axis).squeeze(axis)
    sharding = jax.typeof(index).sharding
    before, after = (None,) * axis, (None,) * (x.ndim - axis - 1)
    spec = jax.sharding.PartitionSpec(*before, *sharding.spec, *after)
    out_sharding = None if sharding.mesh.empty else sharding.update(spec=spec)
    where = (slice(None),) * axis + (index,)
    return x.at[where].get(mode="clip", out_sharding=out_sharding)

"""Rotary positions on grids: every axis turns a part of each head by the coordinate along it.

    head = (part of axis 1, …, part of axis n, rest)      each part turned as in `positions`

All parts are turned by a rotation (https://arxiv.org/abs/2403.13298, axial), so that lengths are kept,
and the product of a query and a key depends on the offset between them alone.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .positions import rope


def grid_coordinates(shape: tuple[int, ...], others: int = 0) -> Int[Array, "positions axes"]:
    """The coordinates of a grid's points in raster order, the last axis the fastest.

    - `others`: how many tokens follow that are not on the grid, such as registers: they stand at the
        origin, where nothing is turned.
    """
    points = np.indices(shape, np.int32).reshape(len(shape), math.prod(shape)).T
    return jnp.asarray(np.concatenate([points, np.zeros((others, len(shape)), np.int32)]))


def axial_rope(
    x: Float[Array, "*space heads head"], coordinates: Int[Array, "*space axes"], base: float = 1e4
) -> Float[Array, "*space heads head"]:
    """Turns equal parts of every head, each by its axis' coordinate; what is over stays.

    - `base`: the slowest pair of an axis turns once in about `2π · base` points.
    """
    axes, head = coordinates.shape[-1], x.shape[-1]
    size = 2 * (head // (2 * axes))
    if size == 0:
        raise ValueError(
            f"`axial_rope` turns a pair of features for each of {axes} axes: heads must have at least "
            f"{2 * axes} features. Received {head}. Choose fewer heads, or leave RoPE out."
        )
    parts = [
        rope(x[..., axis * size : (axis + 1) * size], coordinates[..., axis], base)
        for axis in range(axes)
    ]
    return jnp.concatenate([*parts, x[..., axes * size :]], axis=-1)

"""Depthwise convolution of a few taps on a grid of one to three axes, each with its own boundary.

    y[n] = bias + Σ_j weight[j] ⊙ x[n + dilation (j - centre)]          n, j over the axes of the grid

As in every deep-learning framework the taps are not reversed. The centre of K taps is the one of index
(K - 1) // 2, or the last on a `"causal"` axis.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..precision import upcast
from .grid_conv import Boundary


def grid_short_conv(
    x: Float[Array, "*space features"],
    weight: Float[Array, "*taps groups"],
    bias: Float[Array, " groups"] | None,
    boundary: tuple[Boundary, ...],
    dilation: int = 1,
) -> Float[Array, "*space features"]:
    """The convolution, summed in at least float32.

    - `weight`, `bias`: of every feature, or shared by equal groups of neighbouring features.
    - `boundary`: one for each axis: zeros beyond the edges (`"causal"` too), or `"circular"`.

    **Raises:** `ValueError` if the axes do not agree, or the groups do not divide the features.
    """
    features, groups = x.shape[-1], weight.shape[-1]
    if not x.ndim - 1 == weight.ndim - 1 == len(boundary) or features % groups:
        raise ValueError(
            "`grid_short_conv` takes a grid and taps with as many axes before the features as there "
            "are boundaries, and a number of groups that divides the features. Received "
            f"{x.shape}, {weight.shape} and {boundary}."
        )
    if 0 in x.shape:
        return x
    window = upcast(x)
    weight = jnp.repeat(weight.astype(window.dtype), features // groups, axis=-1)
    for axis, kind in enumerate(boundary):
        window = _extend(window, axis, dilation, weight.shape[axis], kind)
    y = jnp.zeros((), window.dtype)
    for tap in np.ndindex(*weight.shape[:-1]):
        place = tuple(
            slice(dilation * j, dilation * j + points)
            for j, points in zip(tap, x.shape, strict=False)
        )
        y = y + weight[tap] * window[place]
    if bias is not None:
        y = y + jnp.repeat(bias.astype(y.dtype), features // groups)
    return y.astype(x.dtype)


def grid_short_conv_flops(spatial_dims: tuple[int, ...], taps: int) -> int:
    """Floating-point operations of one feature's convolution by that many taps."""
    return 2 * taps * math.prod(spatial_dims)


def _extend(x: Array, axis: int, dilation: int, taps: int, kind: Boundary) -> Array:
    """`x` with what its first and last taps meet beyond its edges."""
    before = dilation * (taps - 1 if kind == "causal" else (taps - 1) // 2)
    after = dilation * (taps - 1) - before
    padding = [(before, after) if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, padding, mode="wrap" if kind == "circular" else "constant")

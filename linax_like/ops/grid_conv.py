"""Depthwise convolution on a grid of one to three axes, each with a boundary of its own, by FFT.

    y[n] = Σ_m kernel[m + centre] x[n - m]         n, m over the axes of the grid

- `"zero"`: the centre of K taps is the one of index K // 2; beyond its edges the grid is zero.
- `"circular"`: the same, but the grid goes on at its other edge.
- `"causal"`: the centre is the first tap, so that nothing comes from behind.

Axes are padded just as far as keeps what wraps around out of the result, to lengths whose only prime
factors are 2, 3 and 5. Where x and y are zero, nothing is transformed: an axis is padded only when its
turn comes. The gradient keeps x and the kernel, and works like the operator on a few features at a
time, so that a spectrum of all features never exists.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..precision import accumulation_dtype
from .fft_size import good_fft_size
from .varying import vary_together


Boundary = Literal["zero", "circular", "causal"]
Backend = Literal["reference", "xla"]


def grid_conv(
    x: Float[Array, "*space features"],
    kernel: Float[Array, "*taps features"],
    boundary: tuple[Boundary, ...],
    *,
    backend: Backend = "xla",
) -> Float[Array, "*space features"]:
    """`x` convolved with `kernel` over the grid, feature by feature, in at least float32.

    - `x`: its dtype is the result's.
    - `kernel`: of any size, whatever the grid's; taps that meet nothing are not used.
    - `boundary`: one for each axis.
    - `backend`: `"reference"` is the sum above, for tests; it can be differentiated in forward mode.

    **Raises:** `ValueError` if the axes of `x`, `kernel` and `boundary` do not agree.
    """
    if not x.ndim - 1 == kernel.ndim - 1 == len(boundary):
        raise ValueError(
            "`grid_conv` takes a grid and a kernel with as many axes before the features as there "
            f"are boundaries. Received {x.shape}, {kernel.shape} and {boundary}."
        )
    if 0 in x.shape or 0 in kernel.shape:
        return jnp.zeros_like(x)
    dtype = accumulation_dtype(x.dtype)
    signal, kernel = x.astype(dtype), kernel.astype(dtype)
    if backend == "reference":
        return _sum(signal, kernel, boundary).astype(x.dtype)
    axes = []
    for axis, kind in enumerate(boundary):
        kernel, first = _needed_taps(kernel, axis, x.shape[axis], kind)
        axes.append(_Axis.of(x.shape[axis], kernel.shape[axis], first, kind))
    signal, kernel = vary_together(jnp.moveaxis(signal, -1, 0), jnp.moveaxis(kernel, -1, 0))
    return jnp.moveaxis(_convolve(tuple(axes), signal, kernel), 0, -1).astype(x.dtype)


def grid_conv_by_feature(
    x: Float[Array, "*space features"],
    kernel_of: Callable[[PyTree[Array]], Float[Array, "*taps"]],
    parameters: PyTree[Float[Array, "features ..."]],
    boundary: tuple[Boundary, ...],
) -> Float[Array, "*space features"]:
    """`grid_conv` with kernels that are made when they are needed, and made again for the gradient.

    The kernels of all features, many times as large as `x` on a grid, never exist at once.

    - `kernel_of`: makes the kernel of one feature of its `parameters`.
    """

    axes = _covering(x.shape[:-1], boundary)

    @jax.checkpoint  # `x` is kept as it came, and not a transposed copy beside it
    def all_features(x, parameters):
        @jax.checkpoint
        def one(inputs):
            signal, own = inputs
            # Fused into the padding, an exp in the kernel would be computed number by number.
            kernel = jax.lax.optimization_barrier(kernel_of(own))
            return grid_conv(signal[..., None], kernel[..., None], boundary)[..., 0]

        inputs = jnp.moveaxis(x, -1, 0), parameters
        return jnp.moveaxis(_few_at_a_time(one, inputs, _transformed(axes)), 0, -1)

    return all_features(x, parameters)


def grid_conv_flops(spatial_dims: tuple[int, ...], boundary: tuple[Boundary, ...]) -> int:
    """Floating-point operations of one feature's convolution, by a kernel that covers the grid."""
    size = _transformed(_covering(spatial_dims, boundary))
    return 3 * round(2.5 * size * math.log2(max(size, 2))) + 3 * size


class _Axis(NamedTuple):
    """How one axis is transformed.

    - `points`, `taps`: of the grid and of the kernel.
    - `first`: the tap at the centre, where the result begins in the full convolution.
    - `size`: of the transform.
    """

    points: int
    taps: int
    first: int
    size: int

    @classmethod
    def of(cls, points: int, taps: int, first: int, kind: Boundary) -> "_Axis":
        if kind == "circular":
            return cls(points, taps, first, points)
        return cls(points, taps, first, good_fft_size(points + max(first, taps - 1 - first)))


def _needed_taps(kernel: Array, axis: int, points: int, kind: Boundary) -> tuple[Array, int]:
    """The taps along an axis that meet something, and which of them is the centre."""
    taps = kernel.shape[axis]
    centre = 0 if kind == "causal" else taps // 2
    if kind != "circular":
        first, last = max(centre - points + 1, 0), min(centre + points, taps)
        return jax.lax.slice_in_dim(kernel, first, last, axis=axis), centre - first
    turns = -(-taps // points)  # what reaches around the grid more than once is summed
    padding = [(0, turns * points - taps) if i == axis else (0, 0) for i in range(kernel.ndim)]
    shape = (*kernel.shape[:axis], turns, points, *kernel.shape[axis + 1 :])
    whole = jnp.pad(kernel, padding).reshape(shape).sum(axis)
    return _roll(whole, -centre, axis), 0  # exact, which a phase ramp in float32 is not


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _roll(x: Array, shift: int, axis: int) -> Array:
    """`jnp.roll`, whose gradient is one as well, and not a sum of padded parts."""
    return jnp.roll(x, shift, axis)


_roll.defvjp(
    lambda x, shift, axis: (jnp.roll(x, shift, axis), None),
    lambda shift, axis, _, g: (jnp.roll(g, -shift, axis),),
)


Axes = tuple[_Axis, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(
    axes: Axes, x: Float[Array, " features *space"], kernel: Float[Array, " features *taps"]
) -> Float[Array, " features *space"]:
    return _convolve_fwd(axes, x, kernel)[0]


def _convolve_fwd(axes, x, kernel):
    def one(pair):
        x, kernel = pair
        points = [(axis.first, axis.points) for axis in axes]
        return _signal(_spectrum(x, axes) * _spectrum(kernel, axes), axes, points)

    return _few_at_a_time(one, (x, kernel), _transformed(axes)), (x, kernel)


def _convolve_bwd(axes, saved, g):
    def one(inputs):
        x, kernel, g = inputs
        g = _spectrum(jnp.pad(g, [(axis.first, 0) for axis in axes]), axes)
        points, taps = ([(0, size) for size in sizes] for sizes in (x.shape, kernel.shape))
        d_x = _signal(g * jnp.conj(_spectrum(kernel, axes)), axes, points)
        return d_x, _signal(g * jnp.conj(_spectrum(x, axes)), axes, taps)

    return _few_at_a_time(one, (*saved, g), _transformed(axes))


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def _few_at_a_time(function, arrays, points: int):
    """`jax.vmap` of so many features that every core has work, and their spectra fit the cache.

    - `points`: of a feature's transform.
    """
    count = max(8, 2**17 // max(points, 1))  # an empty grid has none
    if len(arrays[0]) <= count:
        return jax.vmap(function)(arrays)
    return jax.lax.map(function, arrays, batch_size=count)


def _covering(spatial_dims: tuple[int, ...], boundary: tuple[Boundary, ...]) -> Axes:
    """The axes for a kernel that covers the grid."""
    axes = []
    for points, kind in zip(spatial_dims, boundary, strict=True):
        taps, first = (2 * points - 1, points - 1) if kind == "zero" else (points, 0)
        axes.append(_Axis.of(points, taps, first, kind))
    return tuple(axes)


def _transformed(axes: Axes) -> int:
    """The points of a feature's transform."""
    return math.prod(axis.size for axis in axes)


def _spectrum(x: Float[Array, "*space"], axes: Axes) -> Array:
    """The Fourier transform, its axes in reverse order: the one in turn is moved to the end."""
    h = jnp.fft.rfft(x, axes[-1].size)
    for i in reversed(range(len(axes) - 1)):
        h = jnp.fft.fft(jnp.moveaxis(h, i, -1), axes[i].size)
    return h


def _signal(spectrum: Array, axes: Axes, windows: list[tuple[int, int]]) -> Array:
    """The inverse of `_spectrum`, of which a window `(first, size)` of every axis is kept."""
    h = spectrum
    for i, (first, size) in enumerate(windows[:-1]):
        h = jnp.fft.ifft(h, axes[i].size)[..., first : first + size]
        h = jnp.moveaxis(h, -1, i)
    first, size = windows[-1]
    return jnp.fft.irfft(h, axes[-1].size)[..., first : first + size]


def _sum(
    x: Float[Array, "*space features"],
    kernel: Float[Array, "*taps features"],
    boundary: tuple[Boundary, ...],
) -> Float[Array, "*space features"]:
    """The definition: every tap by itself."""
    y = jnp.zeros_like(x)
    for tap in np.ndindex(*kernel.shape[:-1]):
        shifted = x
        for axis, kind in enumerate(boundary):
            taps, points = kernel.shape[axis], x.shape[axis]
            lag = tap[axis] - (0 if kind == "causal" else taps // 2)
            shifted = jnp.roll(shifted, lag, axis)
            if kind != "circular":
                source = jnp.arange(points) - lag
                inside = (source >= 0) & (source < points)
                shape = [-1 if i == axis else 1 for i in range(x.ndim)]
                shifted = jnp.where(inside.reshape(shape), shifted, 0)
        y = y + kernel[tap] * shifted
    return y

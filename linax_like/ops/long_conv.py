"""Causal convolution with a kernel as long as the signal, by FFT.

    y[t] = Σ_{s ≤ t} kernel[s] x[t-s]

This is `grid_conv` on the axis of time, but for the gradient, which keeps the Fourier transforms of
signal and kernel instead of taking them again.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..precision import accumulation_dtype, upcast
from .fft_size import good_fft_size
from .grid_conv import grid_conv
from .varying import vary_together


def long_conv(
    x: Float[Array, "time features"], kernel: Float[Array, "length features"]
) -> Float[Array, "time features"]:
    """`x` convolved with `kernel` along time, feature by feature, in at least float32.

    - `x`: the signal; its dtype is the result's.
    - `kernel`: `kernel[0]` meets the present. What is longer than the signal is not used.
    """
    if 0 in x.shape or 0 in kernel.shape:
        return jnp.zeros_like(x)
    dtype = accumulation_dtype(x.dtype)
    signal, response = vary_together(x.astype(dtype), kernel[: len(x)].astype(dtype))
    return _convolve(signal, response).astype(x.dtype)


@jax.custom_vjp
def _convolve(
    x: Float[Array, "time features"], kernel: Float[Array, "length features"]
) -> Float[Array, "time features"]:
    return grid_conv(x, kernel, ("causal",))


def _convolve_fwd(x, kernel):
    size = good_fft_size(len(x) + len(kernel) - 1)
    signal, response = (jnp.fft.rfft(z.T, size) for z in (x, kernel))
    y = jnp.fft.irfft(signal * response, size)[:, : len(x)].T
    return y, (signal, response, kernel)


def _convolve_bwd(saved, g):
    signal, response, kernel = saved  # of the last just how long it is
    time, lags = len(g), len(kernel)
    size = good_fft_size(time + lags - 1)
    g = jnp.fft.rfft(g.T, size)
    d_x = jnp.fft.irfft(g * jnp.conj(response), size)[:, :time].T
    return d_x, jnp.fft.irfft(g * jnp.conj(signal), size)[:, :lags].T


_convolve.defvjp(_convolve_fwd, _convolve_bwd)


def long_conv_full(
    x: Float[Array, "time inputs"], kernel: Float[Array, "length inputs outputs"]
) -> Float[Array, "time outputs"]:
    """Every output feature is the sum of a convolution of every input feature."""
    time = len(x)
    kernel = kernel[:time]
    size = good_fft_size(2 * time - 1)
    if time == 0:
        return jnp.zeros_like(x, shape=(0, kernel.shape[-1]))
    signal = jnp.fft.rfft(upcast(x).T, size)
    response = jnp.fft.rfft(jnp.moveaxis(upcast(kernel), 0, -1), size)
    y = jnp.fft.irfft(jnp.einsum("if,iof->of", signal, response, precision="highest"), size)
    return y[:, :time].T.astype(x.dtype)


def long_conv_flops(time: int) -> int:
    """Floating-point operations of one feature's convolution of that length, kernel as long."""
    size = good_fft_size(2 * time)
    return 3 * round(2.5 * size * math.log2(size)) + 3 * size

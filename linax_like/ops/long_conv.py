"""Causal convolution with a kernel as long as the signal, by FFT.

    y[t] = Σ_{s ≤ t} kernel[s] x[t-s]

Padded to at least `time + kernel - 1`, so that nothing wraps around, and to a length whose only
prime factors are 2, 3 and 5.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..precision import upcast


def long_conv(
    x: Float[Array, "*#batch time #features"], kernel: Float[Array, "*#batch length #features"]
) -> Float[Array, "*batch time features"]:
    """`x` convolved with `kernel` along time, feature by feature, in at least float32.

    - `x`: the signal; its dtype is the result's.
    - `kernel`: `kernel[0]` meets the present. What is longer than the signal is not used.

    Leading axes of the two broadcast.
    """
    time = x.shape[-2]
    kernel = kernel[..., :time, :]
    size = good_fft_size(time + kernel.shape[-2] - 1)
    if time == 0 or kernel.shape[-2] == 0:
        return jnp.zeros_like(x, shape=jnp.broadcast_shapes(x.shape, kernel.shape[:-2] + (1, 1)))
    # The last axis is the one that FFTs are fast along.
    signal, response = (jnp.fft.rfft(upcast(z).mT, size) for z in (x, kernel))
    y = jnp.fft.irfft(signal * response, size)[..., :time]
    return y.mT.astype(x.dtype)


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


def good_fft_size(least: int) -> int:
    """The smallest 2ᵃ 3ᵇ 5ᶜ that is at least `least`."""
    best = 1 << max(least - 1, 0).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            factor = -(-least // threes)
            best = min(best, threes << max(factor - 1, 0).bit_length())
            threes *= 3
        fives *= 5
    return best


def long_conv_flops(time: int) -> int:
    """Floating-point operations of one feature's convolution of that length, kernel as long."""
    size = good_fft_size(2 * time)
    return 3 * round(2.5 * size * math.log2(size)) + 3 * size

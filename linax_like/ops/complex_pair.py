"""Complex numbers as pairs of real arrays.

Parameters and states are real: JAX's gradients of complex leaves are conjugated, XLA compiles
complex code slowly, and accelerator kernels have no complex dtype.

`add`, `multiply` and `conjugate` also take plain real arrays, so that one scan serves both.
"""

from typing import NamedTuple, overload

import jax.numpy as jnp
from jaxtyping import Array, Float


class ComplexPair(NamedTuple):
    real: Float[Array, "*shape"]
    imag: Float[Array, "*shape"]


@overload
def add(x: ComplexPair, y: ComplexPair) -> ComplexPair: ...
@overload
def add(x: Array, y: Array) -> Array: ...
def add(x, y):
    if isinstance(x, ComplexPair):
        return ComplexPair(x.real + y.real, x.imag + y.imag)
    return x + y


@overload
def multiply(x: ComplexPair, y: ComplexPair) -> ComplexPair: ...
@overload
def multiply(x: Array, y: Array) -> Array: ...
def multiply(x, y):
    if isinstance(x, ComplexPair):
        return ComplexPair(x.real * y.real - x.imag * y.imag, x.real * y.imag + x.imag * y.real)
    return x * y


@overload
def conjugate(x: ComplexPair) -> ComplexPair: ...
@overload
def conjugate(x: Array) -> Array: ...
def conjugate(x):
    return ComplexPair(x.real, -x.imag) if isinstance(x, ComplexPair) else x


def subtract(x: ComplexPair, y: ComplexPair) -> ComplexPair:
    return ComplexPair(x.real - y.real, x.imag - y.imag)


def scale(x: ComplexPair, factor: Float[Array, "*#shape"] | float) -> ComplexPair:
    return ComplexPair(x.real * factor, x.imag * factor)


def reciprocal(x: ComplexPair) -> ComplexPair:
    """`1 / x`, for |x| whose square is a normal number."""
    return scale(conjugate(x), 1 / (x.real * x.real + x.imag * x.imag))


def exp(x: ComplexPair) -> ComplexPair:
    radius = jnp.exp(x.real)
    return ComplexPair(radius * jnp.cos(x.imag), radius * jnp.sin(x.imag))


def expm1(x: ComplexPair) -> ComplexPair:
    """`exp(x) - 1` without cancellation near 0: exp(r) cos θ - 1 = expm1(r) - 2 exp(r) sin²(θ/2)."""
    radius, half = jnp.exp(x.real), jnp.sin(x.imag / 2)
    return ComplexPair(jnp.expm1(x.real) - 2 * radius * half * half, radius * jnp.sin(x.imag))

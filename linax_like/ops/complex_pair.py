"""Complex numbers as pairs of real arrays.

Parameters and states are real: JAX's gradients of complex leaves are conjugated, XLA compiles
complex code slowly, and accelerator kernels have no complex dtype.

All functions also take plain real arrays, so that one scan serves both.
"""

from typing import NamedTuple, overload

import jax
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
def ones_like(x: ComplexPair) -> ComplexPair: ...
@overload
def ones_like(x: Array) -> Array: ...
def ones_like(x):
    if isinstance(x, ComplexPair):
        return ComplexPair(jnp.ones_like(x.real), jnp.zeros_like(x.imag))
    return jnp.ones_like(x)


@overload
def conjugate(x: ComplexPair) -> ComplexPair: ...
@overload
def conjugate(x: Array) -> Array: ...
def conjugate(x):
    return ComplexPair(x.real, -x.imag) if isinstance(x, ComplexPair) else x


@overload
def conjugate_multiply(x: ComplexPair, y: ComplexPair) -> ComplexPair: ...
@overload
def conjugate_multiply(x: Array, y: Array) -> Array: ...
def conjugate_multiply(x, y):
    """`multiply(conjugate(x), y)`, as one expression for XLA to compile."""
    if isinstance(x, ComplexPair):
        return ComplexPair(x.real * y.real + x.imag * y.imag, x.real * y.imag - x.imag * y.real)
    return x * y


@overload
def subtract(x: ComplexPair, y: ComplexPair) -> ComplexPair: ...
@overload
def subtract(x: Array, y: Array) -> Array: ...
def subtract(x, y):
    if isinstance(x, ComplexPair):
        return ComplexPair(x.real - y.real, x.imag - y.imag)
    return x - y


@overload
def scale(x: ComplexPair, factor: Array | float) -> ComplexPair: ...
@overload
def scale(x: Array, factor: Array | float) -> Array: ...
def scale(x, factor):
    """`x` times something real."""
    return jax.tree.map(lambda part: part * factor, x)


@overload
def reciprocal(x: ComplexPair) -> ComplexPair: ...
@overload
def reciprocal(x: Array) -> Array: ...
def reciprocal(x):
    """`1 / x`, for |x| whose square is a normal number."""
    if isinstance(x, ComplexPair):
        return scale(conjugate(x), 1 / (x.real * x.real + x.imag * x.imag))
    return 1 / x


@overload
def exp(x: ComplexPair) -> ComplexPair: ...
@overload
def exp(x: Array) -> Array: ...
def exp(x):
    return _complex_exp(x) if isinstance(x, ComplexPair) else jnp.exp(x)


@jax.custom_jvp
def _complex_exp(x: ComplexPair) -> ComplexPair:
    """Its gradient stores nothing but the result."""
    radius, chord, imag = _turn(x)
    return ComplexPair(radius - chord, imag)


@_complex_exp.defjvp
def _complex_exp_jvp(primals, tangents):
    y = _complex_exp(*primals)
    return y, multiply(y, *tangents)


@overload
def expm1(x: ComplexPair) -> ComplexPair: ...
@overload
def expm1(x: Array) -> Array: ...
def expm1(x):
    """`exp(x) - 1` without cancellation near 0."""
    if isinstance(x, ComplexPair):
        _, chord, imag = _turn(x)
        return ComplexPair(jnp.expm1(x.real) - chord, imag)
    # A power series near 0: XLA's own takes ten times the time in the loop of a selective scan.
    near = jnp.abs(x) < 0.5
    series = jnp.ones_like(x)
    for n in range(10 if jnp.finfo(x.dtype).bits == 32 else 16, 1, -1):
        series = 1 + series * x / n
    return jnp.where(near, x * series, jnp.exp(x) - 1)


def _turn(x: ComplexPair) -> tuple[Array, Array, Array]:
    """With θ = Im x and r = exp(Re x): r, r (1 - cos θ) and r sin θ, from θ/2 to be exact near 0."""
    radius, half = jnp.exp(x.real), x.imag / 2
    twice = 2 * radius * jnp.sin(half)
    return radius, twice * jnp.sin(half), twice * jnp.cos(half)

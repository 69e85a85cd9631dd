"""Unit triangular systems: the inverse by rows, and of what is larger by halves.

    ⎡A  0⎤⁻¹   ⎡   A⁻¹      0 ⎤
    ⎣C  B⎦   = ⎣-B⁻¹ C A⁻¹  B⁻¹⎦

A CPU has no use for halves before the rows leave its cache: they cost compile time. An accelerator
has: all halves of one size are inverted together, so that there are few steps.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..precision import upcast


_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def unit_triangular_inverse(lower: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The inverse of the identity plus what `lower` holds below its diagonal, in at least float32.

    Nothing else of `lower` is looked at. The gradient needs the inverse alone: d(X⁻¹) = -X⁻¹ dX X⁻¹.
    """
    return _inverse(lower)


def _inverse_forward(lower):
    inverse = _inverse(lower)
    return inverse, (inverse, jnp.zeros((0,), lower.dtype))


def _inverse_backward(residuals, d_inverse):
    inverse, like = residuals
    d_lower = _product(_product(inverse.mT, d_inverse), inverse.mT)
    return (_below_diagonal(-d_lower).astype(like.dtype),)


unit_triangular_inverse.defvjp(_inverse_forward, _inverse_backward)


@jax.custom_vjp
def inverse_for_solve(lower: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """`unit_triangular_inverse(lower)` for `unit_triangular_solve`, which has the gradient by `lower`.

    So none is computed here. But derivatives of that gradient look at how the inverse depends on
    `lower`: `jax.lax.stop_gradient` would make them wrong.
    """
    return _inverse(lower)


inverse_for_solve.defvjp(lambda lower: (_inverse(lower), None), lambda _, d_inverse: (None,))


@jax.custom_jvp
def unit_triangular_solve(
    lower: Float[Array, "*batch n n"],
    inverse: Float[Array, "*batch n n"],
    right: Float[Array, "*batch n m"],
) -> Float[Array, "*batch n m"]:
    """`inverse @ right`, all in one dtype, with the gradient by `lower` rather than by its inverse.

    That takes two products, and not four. `inverse` is `inverse_for_solve(lower)`.
    """
    return _product(inverse, right)


@unit_triangular_solve.defjvp
def _solve_tangent(primals, tangents):
    lower, inverse, right = primals
    d_lower, _, d_right = tangents
    x = unit_triangular_solve(lower, inverse, right)
    return x, _product(inverse, d_right - _product(_below_diagonal(d_lower), x))


def _below_diagonal(x):
    return jnp.tril(x, -1)


def _inverse(lower):
    lower = _below_diagonal(upcast(lower))[..., None, :, :]
    inverse = jax.lax.platform_dependent(
        lower, cpu=partial(_by_halves, largest=64), default=partial(_by_halves, largest=16)
    )
    return inverse[..., 0, :, :]


def _by_halves(lower, largest):
    """The inverses of (…, blocks, n, n)."""
    blocks, size = lower.shape[-3:-1]
    if size <= largest:
        return _by_rows(lower)
    half = (size + 1) // 2
    # An odd size gets a row and a column more, which are the identity's.
    to_even = [(0, 0)] * (lower.ndim - 2) + [(0, 2 * half - size)] * 2
    lower = jnp.pad(lower, to_even)
    diagonal = [lower[..., :half, :half], lower[..., half:, half:]]
    inverses = _by_halves(jnp.concatenate(diagonal, axis=-3), largest)
    a, b = inverses[..., :blocks, :, :], inverses[..., blocks:, :, :]
    c = -_product(_product(b, lower[..., half:, :half]), a)
    inverse = _placed(a, 0, 0) + _placed(b, half, half) + _placed(c, half, 0)
    return inverse[..., :size, :size]


def _placed(block, row, column):
    """The block in a matrix of zeros of twice its size."""
    around = [(offset, block.shape[-1] - offset, 0) for offset in (row, column)]
    no_padding = [(0, 0, 0)] * (block.ndim - 2)
    return jax.lax.pad(block, jnp.zeros((), block.dtype), [*no_padding, *around])


def _by_rows(lower):
    """Row i of the inverse is that of the identity, without what `lower` takes from those above."""
    identity = jnp.eye(lower.shape[-1], dtype=lower.dtype)

    def add_row(inverse, i):
        here, one = (jax.lax.dynamic_slice_in_dim(x, i, 1, axis=-2) for x in (lower, identity))
        row = one - _product(here, inverse)
        return jax.lax.dynamic_update_slice_in_dim(inverse, row, i, axis=-2), None

    return jax.lax.scan(add_row, jnp.zeros_like(lower), jnp.arange(len(identity)))[0]

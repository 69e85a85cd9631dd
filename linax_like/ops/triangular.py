"""The inverse of a unit triangular matrix, by products of matrices.

    ⎡A  0⎤⁻¹   ⎡   A⁻¹      0 ⎤
    ⎣C  B⎦   = ⎣-B⁻¹ C A⁻¹  B⁻¹⎦

All blocks of one size are inverted together, so that there are as many steps as doublings.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..precision import upcast


# Larger matrices are halved. Smaller ones are cheaper whole than in halves.
_SMALL = 8

_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def unit_triangular_inverse(lower: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """The inverse of the identity plus what `lower` holds below its diagonal, in at least float32.

    Nothing else of `lower` is looked at. The gradient needs the inverse alone: d(X⁻¹) = -X⁻¹ dX X⁻¹.
    """
    return _inverse(upcast(lower))


def _forward(lower):
    inverse = unit_triangular_inverse(lower)
    return inverse, (inverse, jnp.zeros((0,), lower.dtype))


def _backward(residuals, d_inverse):
    inverse, like = residuals
    transposed = inverse.mT
    d_lower = -_product(_product(transposed, d_inverse), transposed)
    return (jnp.tril(d_lower, -1).astype(like.dtype),)


unit_triangular_inverse.defvjp(_forward, _backward)


def _inverse(lower):
    size = lower.shape[-1]
    if size <= _SMALL:
        return _inverse_whole(lower)
    if size % 2:
        padded = jnp.pad(lower, ((0, 0),) * (lower.ndim - 2) + ((0, 1), (0, 1)))
        return _inverse(padded)[..., :size, :size]
    first, second = slice(size // 2), slice(size // 2, size)
    blocks = jnp.stack([lower[..., first, first], lower[..., second, second]])
    a, b = _inverse(blocks)
    c = -_product(_product(b, lower[..., second, first]), a)
    above = jnp.concatenate([a, jnp.zeros_like(a)], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([c, b], axis=-1)], axis=-2)


def _inverse_whole(lower):
    """The same formula, in place of blocks with zeros elsewhere."""
    row, column = np.indices(lower.shape[-2:])
    inverse = jnp.broadcast_to(jnp.eye(len(row), dtype=lower.dtype), lower.shape)
    size = 1
    while size < len(row):
        pair = row // (2 * size) == column // (2 * size)
        left_below = pair & (row // size > column // size)
        c = jnp.where(left_below, lower, 0.0)
        inverse = inverse - (c if size == 1 else _product(_product(inverse, c), inverse))
        size *= 2
    return inverse

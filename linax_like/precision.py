"""The dtype policy: parameters are stored in float32, and computed with in the input's dtype.

Decays, states, softplus, norms, softmax and FFTs run in at least float32.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Integer, Num, PyTree


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """float32, or float64 if `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in at least float32."""
    return x.astype(accumulation_dtype(x.dtype))


def wide(numbers: Integer[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers in at least int32: a byte cannot be compared with 256, the size of its vocabulary."""
    return numbers.astype(jnp.promote_types(numbers.dtype, jnp.int32))


def linear(
    x: Num[Array, "*shape in"],
    weight: Float[Array, "out in"],
    bias: Float[Array, " out"] | None = None,
) -> Float[Array, "*shape out"]:
    """`x @ weight.T + bias` in the dtype of `x`, whatever the weight is stored in.

    Whole numbers, such as the pixels of an image, are taken in the weight's dtype.

    Weights are stored `(out, in)`, so that the gradient of a batch is one matrix product without a
    transpose around it: XLA's CPU compiler computes that product ten times faster in bfloat16.
    """
    x = x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(weight.dtype)
    contract_last = (((x.ndim - 1,), (1,)), ((), ()))
    y = jax.lax.dot_general(x, weight.astype(x.dtype), contract_last)
    return y if bias is None else y + bias.astype(x.dtype)


def einsum(spec: str, a: Array, b: Array) -> Array:
    """A product of arrays, summed in at least float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=accumulation_dtype(a.dtype))


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` with its arrays in the dtype of `like`'s first array."""
    dtype = jax.tree.leaves(like)[0].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

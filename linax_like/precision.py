"""The dtype policy: parameters are stored in float32, and computed with in the input's dtype.

Decays, states, softplus, norms, softmax and FFTs run in at least float32.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """float32, or float64 if `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in at least float32."""
    return x.astype(accumulation_dtype(x.dtype))


def matmul(x: Float[Array, "... a"], weight: Float[Array, "a b"]) -> Float[Array, "... b"]:
    """`x @ weight` in the dtype of `x`, whatever the weight is stored in."""
    return x @ weight.astype(x.dtype)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` with its arrays in the dtype of `like`'s first array."""
    dtype = jax.tree.leaves(like)[0].dtype
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

"""Parts of the last axis, with gradients that do not pad each of them to the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def parts(u: Float[Array, "*shape whole"], sizes: tuple[int, ...]) -> tuple[Array, ...]:
    """Parts of these sizes, which fill the axis. Their gradients are joined."""
    return _split(u, sizes)


def _split(u, sizes):
    return tuple(jnp.split(u, np.cumsum(sizes)[:-1], axis=-1))


parts.defvjp(
    lambda u, sizes: (_split(u, sizes), None),
    lambda sizes, _, gradients: (jnp.concatenate(gradients, axis=-1),),
)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def read_part(
    u: Float[Array, "*shape whole"], part: Float[Array, "*shape own"], first: int
) -> Float[Array, "*shape own"]:
    """`part`, one of `parts(u, …)` that begins at `first`, read from `u`.

    What is checkpointed then keeps `u`, and no copy of the part beside it. The gradient is the part's.
    """
    return _read(u, part, first)


def _read(u, part, first):
    return jax.lax.slice_in_dim(u, first, first + part.shape[-1], axis=-1)


read_part.defvjp(
    lambda u, part, first: (_read(u, part, first), None),
    lambda first, _, gradient: (None, gradient),
)

"""The recurrence by its definition: one position after the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..matrix_memory import decayed


def generalized_delta_rule_step(
    state: Float[Array, "heads key value"],
    q: Float[Array, "heads key"],
    k: Float[Array, "heads key"],
    v: Float[Array, "heads value"],
    a: Float[Array, "heads key"],
    b: Float[Array, "heads key"],
    log_decay: Float[Array, "heads key"],
) -> tuple[Float[Array, "heads key value"], Float[Array, "heads value"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    dtype = state.dtype
    q, k, a, b = (z.astype(dtype) for z in (q, k, a, b))
    found = jnp.einsum("hkv,hk->hv", state, a)
    moved = b[:, :, None] * found[:, None, :]
    state = decayed(state, log_decay) + moved + k[:, :, None] * v.astype(dtype)[:, None, :]
    return state, jnp.einsum("hkv,hk->hv", state, q).astype(v.dtype)


def sequential_generalized_delta_rule(state, q, k, v, a, b, log_decay):
    """The state after all positions, and the outputs."""
    step = lambda state, inputs: generalized_delta_rule_step(state, *inputs)
    return jax.lax.scan(step, state, (q, k, v, a, b, log_decay))

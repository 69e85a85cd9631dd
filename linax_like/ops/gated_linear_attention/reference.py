"""The recurrence by its definition: one position after the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..matrix_memory import decayed


def gated_linear_attention_step(
    state: Float[Array, "heads key value"],
    q: Float[Array, "groups key"],
    k: Float[Array, "groups key"],
    v: Float[Array, "heads value"],
    log_decay: Float[Array, "heads key"],
) -> tuple[Float[Array, "heads key value"], Float[Array, "heads value"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    dtype = state.dtype
    q, k = (jnp.repeat(z.astype(dtype), len(v) // len(z), axis=0) for z in (q, k))
    state = decayed(state, log_decay) + k[:, :, None] * v.astype(dtype)[:, None, :]
    return state, jnp.einsum("hkv,hk->hv", state, q).astype(v.dtype)


def sequential_gated_linear_attention(state, q, k, v, log_decay):
    """The state after all positions, and the outputs."""
    step = lambda state, inputs: gated_linear_attention_step(state, *inputs)
    return jax.lax.scan(step, state, (q, k, v, log_decay))

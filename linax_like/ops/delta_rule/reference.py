"""The recurrence by its definition: one position after the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..matrix_memory import decayed


def delta_rule_step(
    state: Float[Array, "heads key value"],
    q: Float[Array, "groups key"],
    k: Float[Array, "groups key"],
    v: Float[Array, "heads value"],
    beta: Float[Array, " heads"],
    log_decay: Float[Array, " heads *key"] | None = None,
) -> tuple[Float[Array, "heads key value"], Float[Array, "heads value"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    dtype = state.dtype
    q, k = (jnp.repeat(z.astype(dtype), len(v) // len(z), axis=0) for z in (q, k))
    if log_decay is not None:
        state = decayed(state, log_decay)
    error = v.astype(dtype) - jnp.einsum("hkv,hk->hv", state, k)
    write = beta.astype(dtype)[:, None] * k
    state = state + write[:, :, None] * error[:, None, :]
    return state, jnp.einsum("hkv,hk->hv", state, q).astype(v.dtype)


def sequential_delta_rule(state, q, k, v, beta, log_decay):
    """The state after all positions, and the outputs."""
    step = lambda state, inputs: delta_rule_step(state, *inputs)
    return jax.lax.scan(step, state, (q, k, v, beta, log_decay))

"""The recurrence by its definition: one position after the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..matrix_memory import decayed


def ssd_step(
    state: Float[Array, "heads head state"],
    x: Float[Array, "heads head"],
    log_decay: Float[Array, " heads"],
    b: Float[Array, "groups state"],
    c: Float[Array, "groups state"],
) -> tuple[Float[Array, "heads head state"], Float[Array, "heads head"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    dtype = state.dtype
    b, c = (jnp.repeat(z.astype(dtype), len(x) // len(z), axis=0) for z in (b, c))
    new = decayed(state, log_decay) + x.astype(dtype)[:, :, None] * b[:, None, :]
    return new, jnp.einsum("hpn,hn->hp", new, c).astype(x.dtype)


def sequential_ssd(x, log_decay, b, c, h0):
    """The state after all positions, and the outputs."""
    step = lambda state, inputs: ssd_step(state, *inputs)
    return jax.lax.scan(step, h0, (x, log_decay, b, c))

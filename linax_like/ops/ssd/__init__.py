"""The linear recurrence of a matrix with one decay per head, as in state space duality:

    h[t] = exp(log_decay[t]) h[t-1] + x[t] b[t]ᵀ        y[t] = h[t] c[t]

(https://arxiv.org/abs/2405.21060). With v for x, k for b and q for c it is linear attention that
forgets.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...precision import accumulation_dtype
from ..linear_scan import incoming_state
from ..matrix_memory import forget
from ..rows import blank
from ..varying import vary_together
from .reference import sequential_ssd, ssd_step as ssd_step
from .xla import chunked_ssd


Backend = Literal["reference", "xla"]


def ssd(
    x: Float[Array, "time heads head"],
    log_decay: Float[Array, "time heads"],
    b: Float[Array, "time groups state"],
    c: Float[Array, "time groups state"],
    h0: Float[Array, "heads head state"] | None = None,
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
    chunk: int = 64,
    backend: Backend | None = None,
) -> tuple[Float[Array, "heads head state"], Float[Array, "time heads head"]]:
    """The state after all positions, in at least float32, and the outputs in the dtype of `x`.

    Head h reads b and c of group `h // (heads / groups)`. Any length works.

    - `log_decay`: at most 0; -inf forgets.
    - `h0`: the state before the first position; zero by default.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged; the outputs there mean nothing.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`. Every shard gets
        the state after the last one.
    - `chunk`: positions computed together. The work per position grows with it, and the states
        that the gradient stores become fewer.
    - `backend`: how to compute it. `"reference"` is the definition, and the one that supports
        forward-mode differentiation; `"xla"`, the default, is chunks with a hand-written gradient.
    """
    if x.shape[1] % b.shape[1]:
        raise ValueError(
            "`ssd` shares b and c among equally many heads: their groups must divide the heads. "
            f"Received {x.shape[1]} heads and {b.shape[1]} groups."
        )
    dtype = accumulation_dtype(x.dtype)
    zero = jnp.zeros((*x.shape[1:], b.shape[2]), dtype)
    start = zero if h0 is None else h0.astype(dtype)
    if len(x) == 0:
        return start, x
    x, b, c = (z.astype(x.dtype) for z in blank(mask, (x, b, c)))
    log_decay = forget(log_decay.astype(dtype), resets, mask)
    x, log_decay, b, c, start, zero = vary_together(x, log_decay, b, c, start, zero)
    if backend == "reference":
        advance = sequential_ssd
    else:
        advance = lambda *operands: chunked_ssd(*operands, chunk)
    if axis_name is None:
        return advance(x, log_decay, b, c, start)
    end, y = advance(x, log_decay, b, c, zero)
    left = jnp.exp(jnp.cumsum(log_decay, axis=0))
    decay = jnp.broadcast_to(left[-1][:, None, None], end.shape)
    incoming = incoming_state(decay, end, start, axis_name)
    y = y + (left[:, :, None] * _read(incoming, c)).astype(y.dtype)
    end = end + decay * incoming
    return jax.lax.all_gather(end, axis_name)[-1], y


def _read(state, c):
    """The outputs of one state that stays."""
    c = jnp.repeat(c.astype(state.dtype), len(state) // c.shape[1], axis=1)
    return jnp.einsum("hpn,thn->thp", state, c)

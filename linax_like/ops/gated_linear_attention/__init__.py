"""Linear attention that forgets every key channel at its own rate:

    S[t] = diag(exp(log_decay[t])) S[t-1] + k[t] v[t]ᵀ        y[t] = S[t]ᵀ q[t]

(https://arxiv.org/abs/2312.06635). With one decay for all channels of a head, `ssd` is faster.
"""

from typing import Literal

from jaxtyping import Array, Bool, Float

from ..matrix_memory import by_head, first_state, forget, over_shards
from ..rows import blank
from ..varying import vary_together
from .reference import (
    gated_linear_attention_step as gated_linear_attention_step,
    sequential_gated_linear_attention,
)
from .xla import chunked_gated_linear_attention


Backend = Literal["reference", "xla"]


def gated_linear_attention(
    q: Float[Array, "time groups key"],
    k: Float[Array, "time groups key"],
    v: Float[Array, "time heads value"],
    log_decay: Float[Array, "time heads key"],
    s0: Float[Array, "heads key value"] | None = None,
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
    chunk: int = 32,
    backend: Backend | None = None,
) -> tuple[Float[Array, "heads key value"], Float[Array, "time heads value"]]:
    """The state after all positions, in at least float32, and the outputs in the dtype of `v`.

    Head h reads q and k of group `h // (heads / groups)`. Any length works.

    - `log_decay`: at most 0; -inf forgets.
    - `s0`: the state before the first position; zero by default.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged; the outputs there mean nothing.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`. Every shard gets
        the state after the last one.
    - `chunk`: positions computed together.
    - `backend`: how to compute it. `"reference"` is the definition, and the one that supports
        forward-mode differentiation; `"xla"`, the default, is chunks with a hand-written gradient.
    """
    q, k = by_head("gated_linear_attention", v, q, k)
    state = first_state(s0, k, v)
    if len(v) == 0:
        return state, v
    q, k, v = (z.astype(v.dtype) for z in blank(mask, (q, k, v)))
    log_decay = forget(log_decay.astype(state.dtype), resets, mask)
    state, q, k, v, log_decay = vary_together(state, q, k, v, log_decay)

    def advance(state, v):
        if backend == "reference":
            return sequential_gated_linear_attention(state, q, k, v, log_decay)
        return chunked_gated_linear_attention(state, q, k, v, log_decay, chunk)

    return advance(state, v) if axis_name is None else over_shards(advance, state, v, axis_name)

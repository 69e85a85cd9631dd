"""The delta rule: a matrix learns, position by position, to answer the key with the value.

    S̃[t] = exp(log_decay[t]) S[t-1]
    S[t] = S̃[t] + beta[t] k[t] (v[t] - S̃[t]ᵀ k[t])ᵀ        y[t] = S[t]ᵀ q[t]

(https://arxiv.org/abs/2406.06484; with one decay per head https://arxiv.org/abs/2412.06464, with one
per key channel https://arxiv.org/abs/2510.26692.)
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..matrix_memory import by_head, first_state, forget, over_shards
from ..rows import blank
from ..varying import vary_together
from .channels import channelwise_delta_rule
from .reference import delta_rule_step as delta_rule_step, sequential_delta_rule
from .xla import chunked_delta_rule


Backend = Literal["reference", "xla"]


def delta_rule(
    q: Float[Array, "time groups key"],
    k: Float[Array, "time groups key"],
    v: Float[Array, "time heads value"],
    beta: Float[Array, "time heads"],
    log_decay: Float[Array, "time heads *key"] | None = None,
    s0: Float[Array, "heads key value"] | None = None,
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
    chunk: int = 64,
    backend: Backend | None = None,
) -> tuple[Float[Array, "heads key value"], Float[Array, "time heads value"]]:
    """The state after all positions, in at least float32, and the outputs in the dtype of `v`.

    Head h reads q and k of group `h // (heads / groups)`. Any length works.

    - `k`: of norm at most 1, or else `beta` at most `2 / |k|²`: the state grows otherwise.
    - `log_decay`: at most 0, one per head or one per head and key channel; None keeps everything.
    - `s0`: the state before the first position; zero by default.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged; the outputs there mean nothing.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`. Every shard gets
        the state after the last one.
    - `chunk`: positions computed together.
    - `backend`: how to compute it. `"reference"` is the definition, and the one that supports
        forward-mode differentiation; `"xla"`, the default, is chunks with a hand-written gradient.
    """
    q, k = by_head("delta_rule", v, q, k)
    state = first_state(s0, k, v)
    if len(v) == 0:
        return state, v
    q, k, v, beta = (z.astype(v.dtype) for z in blank(mask, (q, k, v, beta)))
    if log_decay is not None or resets is not None:
        none = jnp.zeros(beta.shape, state.dtype)
        decay = none if log_decay is None else log_decay.astype(state.dtype)
        log_decay = forget(decay, resets, mask)
    state, q, k, v, beta, log_decay = vary_together(state, q, k, v, beta, log_decay)

    def advance(state, v):
        if backend == "reference":
            return sequential_delta_rule(state, q, k, v, beta, log_decay)
        by_channel = log_decay is not None and log_decay.ndim == 3
        advance_chunks = channelwise_delta_rule if by_channel else chunked_delta_rule
        return advance_chunks(state, q, k, v, beta, log_decay, chunk)

    return advance(state, v) if axis_name is None else over_shards(advance, state, v, axis_name)

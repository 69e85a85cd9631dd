"""The delta rule whose transition is any diagonal plus a matrix of rank one, as in RWKV-7:

    S[t] = diag(exp(log_decay[t])) S[t-1] + b[t] (S[t-1]ᵀ a[t])ᵀ + k[t] v[t]ᵀ        y[t] = S[t]ᵀ q[t]

(https://arxiv.org/abs/2503.14456).
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..matrix_memory import first_state, forget, over_shards
from ..rows import blank, expand
from ..varying import vary_together
from .reference import (
    generalized_delta_rule_step as generalized_delta_rule_step,
    sequential_generalized_delta_rule,
)
from .xla import chunked_generalized_delta_rule


Backend = Literal["reference", "xla"]


def generalized_delta_rule(
    q: Float[Array, "time heads key"],
    k: Float[Array, "time heads key"],
    v: Float[Array, "time heads value"],
    a: Float[Array, "time heads key"],
    b: Float[Array, "time heads key"],
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

    Any length works. The state stays bounded only if the transition's norm is at most 1.

    - `a`: what is looked up in the previous state, before the decay.
    - `b`: where what was found is added; its negative removes.
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
    state = first_state(s0, k, v)
    if len(v) == 0:
        return state, v
    q, k, v, a, b = (z.astype(v.dtype) for z in blank(mask, (q, k, v, a, b)))
    if resets is not None:
        a = jnp.where(expand(resets, a), 0.0, a)
    log_decay = forget(log_decay.astype(state.dtype), resets, mask)
    state, q, k, v, a, b, log_decay = vary_together(state, q, k, v, a, b, log_decay)

    def advance(state, v):
        if backend == "reference":
            return sequential_generalized_delta_rule(state, q, k, v, a, b, log_decay)
        return chunked_generalized_delta_rule(state, q, k, v, a, b, log_decay, chunk)

    return advance(state, v) if axis_name is None else over_shards(advance, state, v, axis_name)

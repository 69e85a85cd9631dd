"""The selective state space of Mamba (https://arxiv.org/abs/2312.00752), real or complex.

    h[t] = decay(Δ[t], A) ⊙ h[t-1] + gain(Δ[t], A) ⊙ (x[t] B[t]ᵀ)        shape (features, state)
    y[t] = h[t] C[t]                    2 Re(h[t] C[t]) if complex, for pairs of conjugate states

Decay and gain are those of `discretize`; Δ, B and C differ from position to position.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...precision import accumulation_dtype
from ..complex_pair import ComplexPair, ones_like
from ..discretize import Discretization
from ..linear_scan import incoming_state
from ..rows import blank
from ..varying import vary_together
from .reference import advance, group, Inputs, Parts as Parts, sequential_scan, ungroup
from .xla import chunked_scan


Backend = Literal["reference", "xla"]

_BACKENDS = {"reference": sequential_scan, "xla": chunked_scan}


def selective_scan(
    x: Float[Array, "time features"],
    dt: Float[Array, "time features"],
    A: Parts,
    B: Parts,
    C: Parts,
    h0: Parts | None = None,
    *,
    decay_dt: Float[Array, "time features"] | None = None,
    discretization: Discretization = "euler",
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
    backend: Backend | None = None,
) -> tuple[Parts, Float[Array, "time features"]]:
    """The state after all positions, and the outputs, both in at least float32.

    Any length works. Neither the recurrence nor its gradient ever holds all states: of those, about
    √time at once. `A`, `B`, `C` and `h0` are real arrays, or all are `ComplexPair`s.

    - `dt`: the step size Δ.
    - `A`: the eigenvalues, shape `(features, state)`.
    - `B`, `C`: shape `(time, state)`; or `(time, groups, state)`, and feature i has those of group
        `i // (features / groups)`.
    - `h0`: the state before the first position, shape `(features, state)`; zero by default.
    - `decay_dt`: the step size of the decay, if it is not the input's.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged; the outputs there mean nothing.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`. Every shard gets
        the state after the last one.
    - `backend`: how to compute it. `"reference"` is the definition, and the one that supports
        forward-mode differentiation; `"xla"`, the default, is a loop in chunks whose gradient
        stores the states between them.

    **Raises:** `ValueError` if the groups do not divide the features, or real meets complex.
    """
    dtype = accumulation_dtype(x.dtype)
    before: Parts = jax.tree.map(jnp.zeros_like, A) if h0 is None else h0
    A, B, C, before = jax.tree.map(lambda part: part.astype(dtype), (A, B, C, before))
    groups = _count_groups(x.shape[1], A, B, C, before)
    if len(x) == 0:
        return before, x.astype(dtype)
    inputs = _inputs(x, dt, decay_dt, B, C, groups)
    inputs = blank(mask, inputs)  # a step of no length with no input changes nothing
    grouped = group(A, groups), group(before, groups)
    A, h, inputs, resets = vary_together(*grouped, inputs, resets)
    scan = partial(_BACKENDS[backend or "xla"], discretization, A)
    if axis_name is not None:
        h = _incoming(scan, h, inputs, resets, axis_name)
    h, y = scan(h, inputs, resets)
    if axis_name is not None:
        h = jax.tree.map(lambda part: jax.lax.all_gather(part, axis_name)[-1], h)
    return ungroup(h), y.reshape(x.shape)


def selective_step(
    h: Parts,
    x: Float[Array, " features"],
    dt: Float[Array, " features"],
    A: Parts,
    B: Parts,
    C: Parts,
    *,
    decay_dt: Float[Array, " features"] | None = None,
    discretization: Discretization = "euler",
) -> tuple[Parts, Float[Array, " features"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    dtype = accumulation_dtype(x.dtype)
    A, B, C, h = jax.tree.map(lambda part: part.astype(dtype), (A, B, C, h))
    x, dt, decay_dt, B, C = jax.tree.map(lambda z: z[None], (x, dt, decay_dt, B, C))
    groups = _count_groups(x.shape[1], A, B, C, h)
    here = jax.tree.map(lambda z: z[0], _inputs(x, dt, decay_dt, B, C, groups))
    h, y = advance(discretization, group(A, groups), group(h, groups), here, None)
    return ungroup(h), y.reshape(-1)


def _inputs(x: Array, dt: Array, decay_dt: Array | None, B: Any, C: Any, groups: int) -> Inputs:
    """The inputs of all positions, grouped, in the dtype of the computation."""
    dtype = accumulation_dtype(x.dtype)
    split = lambda z: z.reshape(len(z), groups, -1).astype(dtype)
    return Inputs(*jax.tree.map(split, (x, dt, decay_dt, B, C)))


def _count_groups(features: int, A: Any, B: Any, C: Any, h: Any) -> int:
    kinds = {name: isinstance(z, ComplexPair) for name, z in zip("ABCh", (A, B, C, h))}
    if len(set(kinds.values())) > 1:
        pairs = ", ".join(name for name, pair in kinds.items() if pair)
        raise ValueError(
            "`selective_scan` is real or complex throughout: give A, B, C and the state as real "
            f"arrays, or all of them as `ComplexPair`s. Received pairs for {pairs} alone."
        )
    part = jax.tree.leaves(B)[0]
    groups = 1 if part.ndim == 2 else part.shape[1]
    if features % groups:
        raise ValueError(
            "`selective_scan` shares B and C among equally many features: their groups must divide "
            f"the features. Received {features} features and {groups} groups."
        )
    return groups


def _incoming(scan: Any, h0: Any, inputs: Inputs, resets: Array | None, axis_name: str) -> Any:
    """The state with which this shard of time starts."""
    nothing = jax.tree.map(jnp.zeros_like, h0)
    end, _ = scan(nothing, inputs, resets)
    left, _ = scan(ones_like(h0), inputs._replace(x=jnp.zeros_like(inputs.x)), resets)
    return incoming_state(left, end, h0, axis_name)

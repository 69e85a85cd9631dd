"""The diagonal linear recurrence `h[t] = a[t] * h[t-1] + b[t]`, real or complex."""

from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..complex_pair import add, ComplexPair, multiply, ones_like
from ..rows import blank
from ..varying import vary_together
from .associative import associative_scan
from .reference import sequential_scan
from .xla import in_place_scan


Backend = Literal["reference", "associative", "xla"]
RealStates = Float[Array, "time *state"]
RealState = Float[Array, "*state"]
States = TypeVar("States", RealStates, ComplexPair)
State = TypeVar("State", RealState, ComplexPair)
Coefficients = Float[Array, "..."] | ComplexPair  # `States`, or `State` if constant in time

_BACKENDS = {
    "reference": sequential_scan,
    "associative": associative_scan,
    "xla": in_place_scan,
}


def linear_scan(
    a: Coefficients,
    b: States,
    h0: State | None = None,
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    reverse: bool = False,
    axis_name: str | None = None,
    backend: Backend | None = None,
) -> States:
    """Every state `h[t] = a[t] * h[t-1] + b[t]`, elementwise.

    Real arrays, or `ComplexPair`s of them. The gradient stores nothing but the states.

    - `a`: the coefficients; without the time axis they are constant in time, and stay that small.
    - `b`: the inputs, shape `(time, *state)`.
    - `h0`: the state before the first position (after the last one if `reverse`); zero by default.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged.
    - `reverse`: run from the last position to the first, `h[t] = a[t] * h[t+1] + b[t]`.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`.
    - `backend`: how to compute it. `"reference"` is the definition, and the one that supports
        forward-mode differentiation; `"associative"` is `jax.lax.associative_scan`, the textbook
        parallel form of S5; `"xla"`, the default, is a loop with a hand-written gradient.
    """
    if jax.tree.leaves(b)[0].shape[0] == 0:
        return b
    a, b, h0 = vary_together(a, blank(mask, b), h0)
    zero = jax.tree.map(lambda b: jnp.zeros_like(b[0]), b)
    hold = None if mask is None else ~mask
    scan = _BACKENDS[backend or "xla"]
    if axis_name is None:
        return scan(a, b, zero if h0 is None else h0, resets, hold, reverse)
    local = scan(a, b, zero, resets, hold, reverse)
    nothing = jax.tree.map(jnp.zeros_like, b)
    decay = scan(
        a, nothing, ones_like(zero), resets, hold, reverse
    )  # what is left of the state that comes in
    last = 0 if reverse else -1
    left, end = jax.tree.map(lambda x: x[last], (decay, local))
    incoming = incoming_state(left, end, zero if h0 is None else h0, axis_name, reverse)
    incoming = jax.tree.map(lambda h, b: jnp.broadcast_to(h, b.shape), incoming, b)
    return add(local, multiply(decay, incoming))


def final_state(
    h: States, before: State, *, reverse: bool = False, axis_name: str | None = None
) -> State:
    """The state after all positions of `linear_scan`'s result; `before` if there are none.

    With time split over `axis_name`, every shard gets the state after the last shard.
    """
    if jax.tree.leaves(h)[0].shape[0] == 0:
        return before
    last = 0 if reverse else -1
    end = jax.tree.map(lambda h: h[last], h)
    if axis_name is None:
        return end
    return jax.tree.map(lambda h: jax.lax.all_gather(h, axis_name)[last], end)


def incoming_state(
    decay: State, end: State, h0: State, axis_name: str, reverse: bool = False
) -> State:
    """The state with which this shard starts, given every shard's decay and end state."""
    decays, ends = jax.lax.all_gather((decay, end), axis_name)
    index = jax.lax.axis_index(axis_name)
    count = jax.tree.leaves(ends)[0].shape[0]
    h: Any = h0
    incoming: Any = h0
    for i in reversed(range(count)) if reverse else range(count):
        incoming = jax.tree.map(partial(jnp.where, index == i), h, incoming)
        shard_decay, shard_end = jax.tree.map(lambda x, i=i: x[i], (decays, ends))
        h = add(multiply(shard_decay, h), shard_end)
    return incoming

"""What the recurrences of a matrix share: its chunks, their gradient, and time split over devices.

The matrix, of shape (heads, key, value), remembers values by keys. One position decays it, takes
something away from it and adds to it: an affine map, hence the map of a chunk of positions is one
as well, and everything about it but the matrix itself can be computed for all chunks at once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..precision import accumulation_dtype, upcast
from .complex_pair import expm1
from .rows import blank, expand
from .varying import vary_together


State = Float[Array, "heads key value"]
Values = Float[Array, "time heads value"]

# Of exp there is nothing left, in float64 either, and a chunk of it sums up to a finite number.
FORGOTTEN = -2000.0


class Recurrence(NamedTuple):
    """A recurrence of a matrix, by positions and by chunks.

    - `step`: from the state and what one position brings to the next state, and the output; None
        where thousands of steps round more than a few chunks do.
    - `prepare`: what a chunk brings, without the state.
    - `advance`: from the state and that to the state after the chunk, and its outputs.
    """

    step: Callable[..., tuple[Array, Array]] | None
    prepare: Callable[[PyTree], Any]
    advance: Callable[[Array, Any], tuple[Array, Array]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunk_recurrence(
    recurrence: Recurrence, chunk: int, state: State, inputs: PyTree
) -> tuple[State, Values]:
    """The state after all positions, and their outputs. The gradient stores the states between chunks.

    - `inputs`: arrays of floating-point numbers, time first. Zeros leave the state as it is.

    A CPU goes from position to position, if there is a step: the state stays in its cache, and a step
    is less work than its part of a chunk. Its gradient goes from chunk to chunk. Both are in at least
    float32. An accelerator prepares all chunks at once.
    """
    return _forward(recurrence, chunk, state, inputs)[0]


def _forward(recurrence, chunk, state, inputs):
    step, prepare, advance = recurrence
    like = jax.tree.leaves(inputs)[0]

    def by_position(state, inputs):
        assert step is not None

        def through(state, rows):
            end, y = jax.lax.scan(lambda state, row: step(state, *row), state, rows)
            return end, (state, y)

        rows = jax.tree.map(lambda z: _split(upcast(z), chunk), inputs)
        end, (entering, y) = jax.lax.scan(through, state, rows)
        return end, entering, _join(y, like)

    def emit(state, prepared):
        new, y = advance(state, prepared)
        return new, (state, y)

    def one_by_one(state, inputs):
        chunks = jax.tree.map(upcast, _in_chunks(inputs, chunk))
        through = lambda state, chunk: emit(state, prepare(chunk))
        end, (entering, y) = jax.lax.scan(through, state, chunks)
        return end, entering, _out_of_chunks(y, like)

    def at_once(state, inputs):
        prepared = jax.vmap(prepare)(_in_chunks(inputs, chunk))
        end, (entering, y) = jax.lax.scan(emit, state, prepared)
        return end, entering, _out_of_chunks(y, like)

    on_cpu = one_by_one if step is None else by_position
    end, entering, y = jax.lax.platform_dependent(state, inputs, cpu=on_cpu, default=at_once)
    return (end, y), (inputs, entering)


def _backward(recurrence, chunk, residuals, cotangents):
    inputs, entering = residuals
    d_state, dy = cotangents
    _, prepare, advance = recurrence

    def one_by_one(d_state, chunks, entering, dy):
        def step(d_state, inputs):
            chunk, entering, dy = inputs
            _, pull = jax.vjp(lambda state, chunk: advance(state, prepare(chunk)), entering, chunk)
            return pull((d_state, dy))

        wide = jax.tree.map(upcast, (chunks, entering, dy))
        return jax.lax.scan(step, d_state, wide, reverse=True)

    def at_once(d_state, chunks, entering, dy):
        prepared, pull_chunks = jax.vjp(jax.vmap(prepare), chunks)

        def step(d_state, inputs):
            prepared, entering, dy = inputs
            return jax.vjp(advance, entering, prepared)[1]((d_state, dy))

        d_state, d_prepared = jax.lax.scan(step, d_state, (prepared, entering, dy), reverse=True)
        d_chunks = pull_chunks(d_prepared)[0]
        return d_state, jax.tree.map(upcast, d_chunks)

    chunks, dy = _in_chunks(inputs, chunk), upcast(_in_chunks(dy, chunk))
    operands = (d_state, chunks, entering, dy)
    d_state, d_chunks = jax.lax.platform_dependent(*operands, cpu=one_by_one, default=at_once)
    return d_state, jax.tree.map(_out_of_chunks, d_chunks, inputs)


chunk_recurrence.defvjp(_forward, _backward)


def _split(x, chunk):
    """(time, …) → (chunks, size, …): equal chunks, as few as can be, the last filled up with zeros."""
    size = -(-len(x) // -(-len(x) // chunk))
    padded = jnp.pad(x, ((0, -len(x) % size), *((0, 0) for _ in x.shape[1:])))
    return padded.reshape(-1, size, *x.shape[1:])


def _join(x, like):
    """The inverse of `_split`."""
    return x.reshape(-1, *x.shape[2:])[: len(like)].astype(like.dtype)


def _in_chunks(tree, chunk):
    """(time, heads, …) → (chunks, heads, size, …)"""
    return jax.tree.map(lambda z: jnp.moveaxis(_split(z, chunk), 1, 2), tree)


def _out_of_chunks(x, like):
    """The inverse of `_in_chunks`."""
    return _join(jnp.moveaxis(x, 1, 2), like)


def by_head(op: str, v: Values, *shared: Float[Array, "time groups key"]) -> tuple[Array, ...]:
    """What groups of heads share, for every head.

    **Raises:** `ValueError` that names the op, if the groups do not divide the heads.
    """
    heads, groups = v.shape[1], shared[0].shape[1]
    if heads % groups:
        raise ValueError(
            f"`{op}` shares q and k among equally many heads: their groups must divide the heads. "
            f"Received {heads} heads and {groups} groups."
        )
    return tuple(jnp.repeat(z, heads // groups, axis=1) for z in shared)


def first_state(s0: State | None, k: Float[Array, "time heads key"], v: Values) -> State:
    """`s0`, or else zeros, in at least float32."""
    dtype = accumulation_dtype(v.dtype)
    shape = (v.shape[1], k.shape[2], v.shape[2])
    return jnp.zeros(shape, dtype) if s0 is None else s0.astype(dtype)


def forget(
    log_decay: Float[Array, "time heads *key"],
    resets: Bool[Array, " time"] | None,
    mask: Bool[Array, " time"] | None,
) -> Float[Array, "time heads *key"]:
    """The log decay, finite, which also forgets at resets and keeps at padding."""
    log_decay = jnp.maximum(blank(mask, log_decay), FORGOTTEN)
    if resets is None:
        return log_decay
    return jnp.where(expand(resets, log_decay), FORGOTTEN, log_decay)


def decayed(state: State, log_decay: Float[Array, " heads *key"]) -> State:
    """`exp(log_decay)` times the state. A product with a decay near 1 would round to one side."""
    log_decay = jnp.maximum(log_decay.astype(state.dtype), FORGOTTEN)  # or gradients would be NaN
    # Behind the barrier once for each channel, not for each number of the state.
    lost = jax.lax.optimization_barrier(expm1(log_decay))
    return state + lost.reshape(*lost.shape, *(1,) * (state.ndim - lost.ndim)) * state


def over_shards(
    advance: Callable[[State, Values], tuple[State, Values]],
    state: State,
    v: Values,
    axis_name: str,
) -> tuple[State, Values]:
    """`advance`, linear in state and values together, over a mesh axis that splits time.

    Every column of the matrix lives by itself. So one run, with values of zero beside the real ones
    and the identity beside a state of zero, gives the map of a whole shard.
    """
    heads, key, value = state.shape
    identity = jnp.broadcast_to(jnp.eye(key, dtype=state.dtype), (heads, key, key))
    nothing = jnp.zeros((*v.shape[:-1], key), v.dtype)
    v, state, identity, nothing = vary_together(v, state, identity, nothing)
    start = jnp.concatenate([jnp.zeros_like(state), identity], axis=-1)
    shard, _ = advance(start, jnp.concatenate([v, nothing], axis=-1))
    shards = jax.lax.all_gather(shard, axis_name)
    here = jax.lax.axis_index(axis_name)
    incoming = state
    for i in range(len(shards)):
        incoming = jnp.where(here == i, state, incoming)
        added, kept = jnp.split(shards[i], [value], axis=-1)
        state = added + jnp.einsum("hij,hjv->hiv", kept, state)
    return state, advance(incoming, v)[1]

"""What the recurrences of a matrix share: its chunks, their gradient, and time split over devices.

The matrix, of shape (heads, key, value), remembers values by keys. One position decays it, takes
something away from it and adds to it: an affine map, hence the map of a chunk of positions is one
as well, and everything about it but the matrix itself can be computed for all chunks at once.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..precision import upcast
from .rows import blank, expand
from .varying import vary_together


Prepared = TypeVar("Prepared")
State = Float[Array, "heads key value"]
Values = Float[Array, "time heads value"]

# Of exp there is nothing left, in float64 either, and a chunk of it sums up to a finite number.
FORGOTTEN = -2000.0


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunk_recurrence(
    prepare: Callable[[PyTree], Prepared],
    advance: Callable[[Array, Prepared], tuple[Array, Array]],
    state: Array,
    chunks: PyTree,
) -> tuple[Array, Array]:
    """The state after all chunks, and their outputs. The gradient stores the states between them.

    - `prepare`: what a chunk's inputs amount to, without the state.
    - `advance`: the state after the chunk, and its outputs.
    - `chunks`: floating-point inputs, chunks first.

    A CPU goes over the chunks one by one, so that their matrices stay in its cache, in at least
    float32. An accelerator prepares all of them at once.
    """
    return _forward(prepare, advance, state, chunks)[0]


def _forward(prepare, advance, state, chunks):
    def emit(state, prepared):
        new, y = advance(state, prepared)
        return new, (state, y)

    def one_by_one(state, chunks):
        step = lambda state, chunk: emit(state, prepare(chunk))
        return jax.lax.scan(step, state, jax.tree.map(upcast, chunks))

    def at_once(state, chunks):
        return jax.lax.scan(emit, state, jax.vmap(prepare)(chunks))

    end, (entering, y) = jax.lax.platform_dependent(state, chunks, cpu=one_by_one, default=at_once)
    return (end, y), (chunks, entering)


def _backward(prepare, advance, residuals, cotangents):
    chunks, entering = residuals
    d_state, dy = cotangents

    def one_by_one(d_state, chunks, entering, dy):
        def step(d_state, inputs):
            chunk, entering, dy = inputs
            _, pull = jax.vjp(lambda state, chunk: advance(state, prepare(chunk)), entering, chunk)
            return pull((d_state, dy))

        wide = jax.tree.map(upcast, chunks)
        d_state, d_chunks = jax.lax.scan(step, d_state, (wide, entering, dy), reverse=True)
        return d_state, jax.tree.map(lambda d, x: d.astype(x.dtype), d_chunks, chunks)

    def at_once(d_state, chunks, entering, dy):
        prepared, pull_chunks = jax.vjp(jax.vmap(prepare), chunks)

        def step(d_state, inputs):
            prepared, entering, dy = inputs
            return jax.vjp(advance, entering, prepared)[1]((d_state, dy))

        d_state, d_prepared = jax.lax.scan(step, d_state, (prepared, entering, dy), reverse=True)
        return d_state, pull_chunks(d_prepared)[0]

    return jax.lax.platform_dependent(
        d_state, chunks, entering, dy, cpu=one_by_one, default=at_once
    )


chunk_recurrence.defvjp(_forward, _backward)


def in_chunks(x: Float[Array, "time heads *shape"], chunk: int) -> Float[Array, "..."]:
    """(time, heads, …) → (chunks, heads, size, …): equal chunks, as few as can be.

    What fills up the last is zero: it must leave the state as it is.
    """
    size = -(-len(x) // -(-len(x) // chunk))
    padded = jnp.pad(x, ((0, -len(x) % size), *((0, 0) for _ in x.shape[1:])))
    return jnp.moveaxis(padded.reshape(-1, size, *x.shape[1:]), 1, 2)


def out_of_chunks(y: Float[Array, "chunks heads size value"], like: Values) -> Values:
    """The inverse of `in_chunks`."""
    y = jnp.moveaxis(y, 1, 2)
    return y.reshape(-1, *y.shape[2:])[: len(like)].astype(like.dtype)


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

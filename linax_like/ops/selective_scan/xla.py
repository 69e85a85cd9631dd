"""The selective recurrence as a loop in chunks; its gradient goes back through them.

The forward loop keeps the states that enter the chunks, about √time of them. From the last chunk to
the first, the gradient computes the states within a chunk again, and then pulls the cotangents back
through one position after the other. No array has the axes of time, features and state.
"""

from functools import partial
from math import isqrt

import jax
import jax.numpy as jnp

from ..rows import row, set_row
from .reference import advance, Inputs


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_scan(method, A, h0, inputs, resets):
    """As `sequential_scan`."""
    return _forward(method, A, h0, inputs, resets)[0]


def _forward(method, A, h0, inputs, resets):
    length, chunk, chunks = _sizes(inputs)

    def step(t, carry):
        h, y = carry
        h, y_t = advance(method, A, h, row(t, inputs), row(t, resets))
        return h, set_row(t, y, y_t)

    def advance_chunk(i, carry):
        h, y, entering = carry
        entering = set_row(i, entering, h)
        stop = jnp.minimum((i + 1) * chunk, length)
        return *jax.lax.fori_loop(i * chunk, stop, step, (h, y)), entering

    start = h0, jnp.zeros_like(inputs.x), _rows_like(h0, chunks)
    h, y, entering = jax.lax.fori_loop(0, chunks, advance_chunk, start)
    return (h, y), (A, inputs, resets, entering)


def _backward(method, residuals, cotangents):
    A, inputs, resets, entering = residuals
    dh, dy = cotangents
    length, chunk, chunks = _sizes(inputs)

    def pull_chunk(i, carry):
        first = (chunks - 1 - i) * chunk
        size = jnp.minimum(chunk, length - first)

        def step(k, carry):
            h, states = carry
            at = partial(row, first + k)
            return advance(method, A, h, at(inputs), at(resets))[0], set_row(k, states, h)

        h = row(chunks - 1 - i, entering)
        _, states = jax.lax.fori_loop(0, size, step, (h, _rows_like(h, chunk)))

        def pull(k, carry):
            dA, dh, d_inputs = carry
            k = size - 1 - k
            at = partial(row, first + k)
            position = lambda A, h, here: advance(method, A, h, here, at(resets))
            _, pullback = jax.vjp(position, A, row(k, states), at(inputs))
            more, dh, d_here = pullback((dh, at(dy)))
            return jax.tree.map(jnp.add, dA, more), dh, set_row(first + k, d_inputs, d_here)

        return jax.lax.fori_loop(0, size, pull, carry)

    start = jax.tree.map(jnp.zeros_like, A), dh, jax.tree.map(jnp.zeros_like, inputs)
    return *jax.lax.fori_loop(0, chunks, pull_chunk, start), None


chunked_scan.defvjp(_forward, _backward)


def _sizes(inputs: Inputs) -> tuple[int, int, int]:
    """How many positions, positions in a chunk, and chunks there are."""
    length = len(inputs.x)
    chunk = isqrt(length - 1) + 1
    return length, chunk, -(-length // chunk)


def _rows_like(h, rows: int):
    return jax.tree.map(lambda h: jnp.broadcast_to(jnp.zeros_like(h), (rows, *h.shape)), h)

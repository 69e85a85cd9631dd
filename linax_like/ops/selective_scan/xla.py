"""The selective recurrence as a loop in chunks; its gradient goes back through them.

The forward loop keeps the states that enter the chunks, about √time of them. From the last chunk to
the first, the gradient computes the states within a chunk again, and then pulls the cotangents back
through one position after the other. No array has the axes of time, features and state. Derivatives
of the gradient are those of the definition.
"""

from functools import partial
from math import isqrt

import jax
import jax.numpy as jnp

from ..differentiated import differentiated_as
from ..rows import row, set_row
from .reference import advance, Inputs, sequential_scan


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_scan(method, A, h0, inputs, resets):
    """As `sequential_scan`."""
    return _forward(method, A, h0, inputs, resets)[0]


def _forward(method, A, h0, inputs, resets):
    definition, fast = (partial(f, method) for f in (sequential_scan, _run))
    results, entering = differentiated_as(definition, fast, A, h0, inputs, resets)
    return results, (A, h0, inputs, resets, entering)


def _backward(method, residuals, cotangents):
    definition, fast = (partial(f, method) for f in (_pull_back_by_scan, _pull_back))
    gradients, _ = differentiated_as(definition, fast, *residuals, cotangents)
    return *gradients, None


chunked_scan.defvjp(_forward, _backward)


def _run(method, A, h0, inputs, resets):
    """The state after all positions, and the outputs; and the states that enter the chunks."""
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
    return (h, y), entering


def _pull_back_by_scan(method, A, h0, inputs, resets, entering, cotangents):
    """As `_pull_back`."""
    scan = partial(sequential_scan, method, resets=resets)
    return jax.vjp(scan, A, h0, inputs)[1](cotangents)


def _pull_back(method, A, h0, inputs, resets, entering, cotangents):
    """The gradients of A, h0 and the inputs."""
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
    return jax.lax.fori_loop(0, chunks, pull_chunk, start), None


def _sizes(inputs: Inputs) -> tuple[int, int, int]:
    """How many positions, positions in a chunk, and chunks there are."""
    length = len(inputs.x)
    chunk = isqrt(length - 1) + 1
    return length, chunk, -(-length // chunk)


def _rows_like(h, rows: int):
    return jax.tree.map(lambda h: jnp.broadcast_to(jnp.zeros_like(h), (rows, *h.shape)), h)

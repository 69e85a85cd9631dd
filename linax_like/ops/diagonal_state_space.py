"""A diagonal state space per feature: many small recurrences with one real input and output each.

    h[t] = decay ⊙ h[t-1] + x[t]
    y[t] = 2 Re Σₙ weightₙ hₙ[t]
    K[l] = 2 Re Σₙ weightₙ decayₙˡ

The states have shape `(features, state)`; over all of time they would be far larger than the
signal, so nothing here ever holds more than about √time of them.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .complex_pair import ComplexPair, exp, multiply, scale
from .linear_scan import final_state, incoming_state, linear_scan
from .varying import vary_together


def impulse_response(
    log_decay: ComplexPair, weight: ComplexPair, length: int
) -> Float[Array, "features length"]:
    """K.

    With l = cQ + q, decayˡ = decay^(cQ) decay^q makes the sum over the states a product of two
    matrices with about √length columns.
    """
    columns = max(math.isqrt(length), 1)
    rows = -(-length // columns)
    index = partial(jnp.arange, dtype=weight.real.dtype)
    factor = ComplexPair(weight.real[..., None], weight.imag[..., None])
    coarse = multiply(factor, _powers(log_decay, columns * index(rows)))
    fine = _powers(log_decay, index(columns))
    left = jnp.concatenate([coarse.real, -coarse.imag], axis=1)
    right = jnp.concatenate([fine.real, fine.imag], axis=1)
    kernel = 2 * jnp.einsum("fnr,fnc->frc", left, right, precision="highest")
    return kernel.reshape(kernel.shape[0], rows * columns)[:, :length]


def recurrence(
    log_decay: ComplexPair,
    weight: ComplexPair,
    state: ComplexPair,
    x: Float[Array, "time features"],
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
) -> tuple[ComplexPair, Float[Array, "time features"]]:
    """The state after all positions, and the outputs; `resets` and so on as in `linear_scan`."""
    if len(x) == 0:
        return state, x
    if axis_name is None:
        return _in_chunks(log_decay, weight, state, x, resets, mask)
    nothing = jax.tree.map(jnp.zeros_like, state)
    end, _ = _in_chunks(log_decay, weight, nothing, x, resets, mask)
    count = float(len(x)) if mask is None else mask.sum(dtype=x.dtype)
    decay = exp(scale(log_decay, count))  # what is left of the state that comes in
    if resets is not None:
        decay = scale(decay, jnp.where(resets.any(), 0, jnp.ones((), x.dtype)))
    decay, end, state = vary_together(decay, end, state)
    state = incoming_state(decay, end, state, axis_name)
    state, y = _in_chunks(log_decay, weight, state, x, resets, mask)
    return jax.tree.map(lambda h: jax.lax.all_gather(h, axis_name)[-1], state), y


def read_out(weight: ComplexPair, h: ComplexPair) -> Float[Array, "*time features"]:
    """2 Re Σₙ weightₙ hₙ."""
    return 2 * jnp.sum(weight.real * h.real - weight.imag * h.imag, axis=-1)


def _in_chunks(
    log_decay: ComplexPair,
    weight: ComplexPair,
    state: ComplexPair,
    x: Float[Array, "time features"],
    resets: Bool[Array, " time"] | None,
    mask: Bool[Array, " time"] | None,
) -> tuple[ComplexPair, Float[Array, "time features"]]:
    """The gradient keeps the states between chunks, and computes those within a chunk again."""
    decay = exp(log_decay)
    chunk = math.isqrt(len(x) - 1) + 1
    padding = -len(x) % chunk
    if padding and mask is None:
        mask = jnp.ones(x.shape[:1], bool)

    def chunked(array: Array) -> Array:
        array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(-1, chunk, *array.shape[1:])

    @partial(jax.checkpoint, prevent_cse=False)
    def advance(state, inputs):
        x, resets, mask = inputs
        real = jnp.broadcast_to(x[..., None], (*x.shape, decay.real.shape[-1]))
        drive = ComplexPair(real, jnp.zeros_like(real))
        states = linear_scan(decay, drive, state, resets=resets, mask=mask)
        return final_state(states, state), read_out(weight, states)

    inputs = jax.tree.map(chunked, (x, resets, mask))
    state, decay, weight, inputs = vary_together(state, decay, weight, inputs)
    state, y = jax.lax.scan(advance, state, inputs)
    return state, y.reshape(-1, y.shape[-1])[: len(x)]


def _powers(log_decay: ComplexPair, exponents: Float[Array, " count"]) -> ComplexPair:
    return exp(jax.tree.map(lambda part: part[..., None] * exponents, log_decay))

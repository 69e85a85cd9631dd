"""A diagonal state space per feature: many small recurrences with one real input and output each.

    h[t] = decay ⊙ h[t-1] + gain ⊙ x[t]
    y[t] = 2 Re Σₙ weightₙ hₙ[t]
    K[l] = 2 Re Σₙ weightₙ gainₙ decayₙˡ

The states have shape `(features, state)`; over all of time they would be far larger than the
signal, so nothing here ever holds more than about √time of them.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .chunked_scan import chunked_scan, Positions
from .complex_pair import ComplexPair, exp, multiply, ones_like
from .discretize import Discretization, discretize_decay, discretize_gain, discretize_log_decay
from .linear_scan import final_state, incoming_state, linear_scan
from .varying import vary_together


class Diagonal(NamedTuple):
    """The continuous system of every feature, and how long a step of it is.

    - `eigenvalues`: λ, of shape `(features, state)` and negative real part.
    - `dt`: Δ, of the same shape or one that broadcasts to it.
    """

    eigenvalues: ComplexPair
    dt: Float[Array, "..."]


def impulse_response(
    system: Diagonal, method: Discretization, weight: ComplexPair, length: int
) -> Float[Array, "features length"]:
    """K.

    With l = cQ + q, decayˡ = decay^(cQ) decay^q makes the sum over the states a product of two
    matrices with about √length columns.
    """
    eigenvalues, dt = system
    log_decay = discretize_log_decay(eigenvalues, dt, method)
    weight = multiply(weight, discretize_gain(eigenvalues, dt, method))
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


def discretize(
    system: Diagonal, method: Discretization, timesteps: Float[Array, "*time"] | None = None
) -> tuple[ComplexPair, ComplexPair]:
    """Decay and gain of a step, constant in time unless there are timesteps."""
    eigenvalues, dt = system
    if timesteps is not None:
        dt = timesteps[..., None, None].astype(dt.dtype) * dt
    decay = discretize_decay(eigenvalues, dt, method)
    return decay, discretize_gain(eigenvalues, dt, method)


def recurrence(
    system: Diagonal,
    method: Discretization,
    weight: ComplexPair,
    state: ComplexPair,
    positions: Positions,
    axis_name: str | None = None,
) -> tuple[ComplexPair, Float[Array, "time features"]]:
    """The state after all positions, and the outputs.

    - `positions`: with inputs of shape `(time, features or 1, state or 1)`.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`.
    """
    time = len(positions.x)
    if time == 0:
        return state, jnp.zeros_like(positions.x, shape=(0, len(weight.real)))
    run = partial(chunked_scan, partial(_advance, method), (system, weight))
    if axis_name is None:
        return run(state, positions)
    zero = jax.tree.map(jnp.zeros_like, state)
    end, _ = run(zero, positions)
    decay, _ = run(ones_like(state), positions._replace(x=jnp.zeros_like(positions.x)))
    decay, end, state = vary_together(decay, end, state)
    state = incoming_state(decay, end, state, axis_name)
    state, y = run(state, positions)
    return jax.tree.map(lambda h: jax.lax.all_gather(h, axis_name)[-1], state), y


def read_out(weight: ComplexPair, h: ComplexPair) -> Float[Array, "*time features"]:
    """2 Re Σₙ weightₙ hₙ."""
    return 2 * jnp.sum(weight.real * h.real - weight.imag * h.imag, axis=-1)


def _advance(
    method: Discretization,
    parameters: tuple[Diagonal, ComplexPair],
    state: ComplexPair,
    positions: Positions,
) -> tuple[ComplexPair, Float[Array, "time features"]]:
    system, weight = parameters
    x, timesteps, resets, mask = positions
    decay, gain = discretize(system, method, timesteps)
    shape = (len(x), *state.real.shape)
    drive = jax.tree.map(lambda part: jnp.broadcast_to(part * x, shape), gain)
    states = linear_scan(decay, drive, state, resets=resets, mask=mask)
    return final_state(states, state), read_out(weight, states)


def _powers(log_decay: ComplexPair, exponents: Float[Array, " count"]) -> ComplexPair:
    return exp(jax.tree.map(lambda part: part[..., None] * exponents, log_decay))

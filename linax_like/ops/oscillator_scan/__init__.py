"""Driven oscillators: a linear recurrence of a velocity v and a position s.

    v[t] = keep[t] v[t-1] - pull[t] s[t-1] + drive[t]
    s[t] = s[t-1] + dt[t] v[t]

The coefficients are real and the states complex, so real and imaginary parts are independent.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..complex_pair import add, ComplexPair, scale
from ..rows import blank
from ..varying import vary_together
from .reference import (
    oscillator_step as oscillator_step,
    Oscillators as Oscillators,
    OscillatorState as OscillatorState,
    sequential_scan,
)
from .xla import in_place_scan


Backend = Literal["reference", "xla"]

_BACKENDS = {"reference": sequential_scan, "xla": in_place_scan}


def oscillator_scan(
    oscillators: Oscillators,
    drive: ComplexPair,
    start: OscillatorState,
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
    backend: Backend | None = None,
) -> tuple[OscillatorState, ComplexPair]:
    """The state after all positions, and s everywhere. The gradient stores nothing but the states.

    - `oscillators`: the coefficients, shape `(time, state)`, or `(state,)` if constant in time.
    - `drive`: shape `(time, state)`.
    - `start`: the state before the first position.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged.
    - `axis_name`: the mesh axis over which time is split, inside `jax.shard_map`. Every device
        gets the state after the last one.
    - `backend`: how to compute it. `"reference"` is the definition, and the one that supports
        forward-mode differentiation; `"xla"`, the default, is a loop with a hand-written gradient.
    """
    if len(drive.real) == 0:
        return start, drive
    oscillators, drive, start = vary_together(oscillators, blank(mask, drive), start)
    hold = None if mask is None else ~mask
    scan = _BACKENDS[backend or "xla"]
    if axis_name is None:
        return scan(oscillators, drive, start, resets, hold)
    nothing = jax.tree.map(jnp.zeros_like, start)
    end, positions = scan(oscillators, drive, nothing, resets, hold)
    # What is left of the state that comes in: the real lane starts from a unit of velocity, the
    # imaginary one from a unit of position.
    zero = jnp.zeros_like(start.velocity.real)
    units = OscillatorState(ComplexPair(zero + 1, zero), ComplexPair(zero, zero + 1))
    quiet = jax.tree.map(jnp.zeros_like, drive)
    units_end, units_positions = scan(oscillators, quiet, units, resets, hold)
    incoming, last = _hand_over(units_end, end, start, axis_name)
    return last, add(positions, _response(units_positions, incoming))


def _hand_over(
    units: OscillatorState, end: OscillatorState, start: OscillatorState, axis_name: str
) -> tuple[OscillatorState, OscillatorState]:
    """The state with which this device starts, and the one after the last device."""
    units, ends = jax.lax.all_gather((units, end), axis_name)
    index = jax.lax.axis_index(axis_name)
    state = incoming = start
    for i in range(jax.lax.axis_size(axis_name)):
        incoming = jax.tree.map(partial(jnp.where, index == i), state, incoming)
        unit, end = jax.tree.map(lambda x, i=i: x[i], (units, ends))
        velocity, position = (_response(response, state) for response in unit)
        state = OscillatorState(add(velocity, end.velocity), add(position, end.position))
    return incoming, state


def _response(units: ComplexPair, state: OscillatorState) -> ComplexPair:
    """To a state, given those to a unit of velocity and to a unit of position."""
    return add(scale(state.velocity, units.real), scale(state.position, units.imag))

"""The driven oscillators by their definition: one position after the other."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from ..complex_pair import add, ComplexPair, scale
from ..rows import heed


class Oscillators(NamedTuple):
    """What a step of every oscillator is.

    - `keep`: what is left of the velocity.
    - `pull`: the change of velocity per unit of position, towards 0.
    - `dt`: the change of position per unit of the new velocity.
    """

    keep: Float[Array, "*time state"]
    pull: Float[Array, "*time state"]
    dt: Float[Array, "*time state"]


class OscillatorState(NamedTuple):
    """The velocities and positions. A real drive and a real state need the real parts alone."""

    velocity: ComplexPair
    position: ComplexPair


def oscillator_step(
    oscillators: Oscillators, drive: ComplexPair, state: OscillatorState
) -> OscillatorState:
    """One position further."""
    keep, pull, dt = oscillators
    kept = add(scale(state.velocity, keep), scale(state.position, -pull))
    velocity = add(kept, drive)
    return OscillatorState(velocity, add(state.position, scale(velocity, dt)))


def sequential_scan(oscillators, drive, start, resets, hold):
    """The state after all positions, and every position; at `hold` the state stays as it is."""
    end, _, positions = every_state(oscillators, drive, start, resets, hold)
    return end, positions


def every_state(oscillators, drive, start, resets, hold):
    """The last state, and all velocities and positions."""
    constant = oscillators.keep.ndim < drive.real.ndim

    def step(state, inputs):
        oscillators_t, drive_t, reset, held = inputs
        before = heed(reset, None, state, state)
        now = oscillators if constant else oscillators_t
        state = heed(None, held, oscillator_step(now, drive_t, before), before)
        return state, state

    inputs = (None if constant else oscillators, drive, resets, hold)
    end, states = jax.lax.scan(step, start, inputs)
    return end, *states

"""The driven oscillators as a loop over the rows of arrays, in place; and the gradient as another.

With cotangents g of the positions, and q, p what reaches a velocity and a position from later ones,
from the last position to the first

    δs = g[t] + p        δv = q + dt δs        q ← keep δv        p ← δs - pull δv
    d drive[t] = δv      d keep = δv v[t-1]    d pull = -δv s[t-1]    d dt = δs v[t]

Only the states are stored.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..rows import heed, row, rows_of, select, set_row
from .reference import Oscillators, OscillatorState


@jax.custom_vjp
def in_place_scan(oscillators, drive, start, resets, hold):
    """As `sequential_scan`."""
    end, _, positions = _run(oscillators, drive, start, resets, hold)
    return end, positions


def _run(oscillators, drive, start, resets, hold):
    """The last state, and all velocities and positions."""
    rows, join, split = rows_of(drive)
    drive, start = join(drive), tuple(map(join, start))
    at_every = _coefficients(oscillators, drive)

    def step(t, carry):
        state, states = carry
        at = partial(row, t)
        keep, pull, dt = at_every(t)
        before = v, s = heed(at(resets), None, state, state)
        v = keep * v - pull * s + at(drive)
        state = heed(None, at(hold), (v, s + dt * v), before)
        return state, set_row(t, states, state)

    states = jax.tree.map(jnp.zeros_like, (drive, drive))
    end, states = jax.lax.fori_loop(0, rows, step, (start, states))
    return OscillatorState(*map(split, end)), *map(split, states)


def _forward(oscillators, drive, start, resets, hold):
    end, velocities, positions = _run(oscillators, drive, start, resets, hold)
    return (end, positions), (oscillators, velocities, positions, start, resets, hold)


def _backward(residuals, cotangents):
    oscillators, velocities, positions, start, resets, hold = residuals
    rows, join, split = rows_of(positions)
    states, start = (join(velocities), join(positions)), tuple(map(join, start))
    passed, g = tuple(map(join, cotangents[0])), join(cotangents[1])
    at_every, constant = _coefficients(oscillators, g), oscillators.keep.ndim < g.ndim

    def step(i, carry):
        passed, slopes, d_drive = carry
        t = rows - 1 - i
        at = partial(row, t)
        keep, pull, dt = at_every(t)
        earlier = select(t == 0, start, row(jnp.maximum(t - 1, 0), states))
        v, s = heed(at(resets), None, earlier, earlier)
        ds = at(g) + passed[1]
        dv = passed[0] + dt * ds
        passed = heed(at(resets), at(hold), (keep * dv, ds - pull * dv), (passed[0], ds))
        slope = dv * v, -dv * s, ds * at(states[0])
        slope = heed(None, at(hold), slope, jax.tree.map(jnp.zeros_like, slope))
        if constant:
            slopes = jax.tree.map(jnp.add, slopes, slope)
        else:
            slopes = set_row(t, slopes, slope)
        return passed, slopes, set_row(t, d_drive, dv)

    like = passed[0] if constant else g
    zeros = jax.tree.map(jnp.zeros_like, ((like, like, like), g))
    passed, slopes, d_drive = jax.lax.fori_loop(0, rows, step, (passed, *zeros))
    lanes = [jnp.add(*split(slope)) for slope in slopes]
    return Oscillators(*lanes), split(d_drive), OscillatorState(*map(split, passed)), None, None


in_place_scan.defvjp(_forward, _backward)


def _coefficients(oscillators, rows):
    """The coefficients at a position, for both lanes of a row."""
    both = lambda c: jnp.concatenate([c, c], axis=-1)
    if oscillators.keep.ndim < rows.ndim:
        constant = jax.tree.map(both, oscillators)
        return lambda t: constant
    return lambda t: jax.tree.map(both, row(t, oscillators))

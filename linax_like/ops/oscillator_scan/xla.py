"""The driven oscillators as a loop over the rows of arrays, in place; and the gradient as another.

With cotangents g of the positions, and q, p what reaches a velocity and a position from later ones,
from the last position to the first

    δs = g[t] + p        δv = q + dt δs        q ← keep δv        p ← δs - pull δv
    d drive[t] = δv      d keep = δv v[t-1]    d pull = -δv s[t-1]    d dt = δs v[t]

Only the states are stored. Derivatives of the gradient are by `jax.lax.scan`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..differentiated import differentiated_as
from ..rows import heed, row, rows_of, select, set_row
from .reference import every_state, Oscillators, OscillatorState


@jax.custom_vjp
def in_place_scan(oscillators, drive, start, resets, hold):
    """As `sequential_scan`."""
    return _forward(oscillators, drive, start, resets, hold)[0]


def _forward(oscillators, drive, start, resets, hold):
    operands = oscillators, drive, start, resets, hold
    (end, *states), _ = differentiated_as(every_state, _states, *operands)
    return (end, states[1]), (oscillators, *states, start, resets, hold)


def _backward(residuals, cotangents):
    oscillators, velocities, positions, start, resets, hold = residuals
    _, join, split = rows_of(positions)
    states, start, passed = (
        tuple(map(join, pair)) for pair in ((velocities, positions), start, cotangents[0])
    )
    operands = oscillators, states, start, resets, hold, passed, join(cotangents[1])
    gradients, _ = differentiated_as(_pull_back_by_scan, _pull_back, *operands)
    slopes, d_drive, passed = gradients
    lanes = [jnp.add(*split(slope)) for slope in slopes]
    return Oscillators(*lanes), split(d_drive), OscillatorState(*map(split, passed)), None, None


in_place_scan.defvjp(_forward, _backward)


def _states(oscillators, drive, start, resets, hold):
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
    return (OscillatorState(*map(split, end)), *map(split, states)), None


def _pull_back(oscillators, states, start, resets, hold, passed, g):
    """The gradients of the coefficients for both lanes, of the drive and of the start."""
    rows = len(g)
    at_every, constant = _coefficients(oscillators, g), oscillators.keep.ndim < g.ndim

    def step(i, carry):
        passed, slopes, d_drive = carry
        t = rows - 1 - i
        at = partial(row, t)
        earlier = select(t == 0, start, row(jnp.maximum(t - 1, 0), states))
        here = at_every(t), earlier, at(states[0]), at(g), at(resets), at(hold)
        passed, (slope, dv) = _pull(passed, here)
        if constant:
            slopes = jax.tree.map(jnp.add, slopes, slope)
        else:
            slopes = set_row(t, slopes, slope)
        return passed, slopes, set_row(t, d_drive, dv)

    like = passed[0] if constant else g
    zeros = jax.tree.map(jnp.zeros_like, ((like, like, like), g))
    passed, slopes, d_drive = jax.lax.fori_loop(0, rows, step, (passed, *zeros))
    return (slopes, d_drive, passed), None


def _pull_back_by_scan(oscillators, states, start, resets, hold, passed, g):
    """As `_pull_back`."""
    earlier = jax.tree.map(lambda x, x0: jnp.concatenate([x0[None], x[:-1]]), states, start)
    every = jax.vmap(_coefficients(oscillators, g))(jnp.arange(len(g)))
    inputs = every, earlier, states[0], g, resets, hold
    passed, (slopes, d_drive) = jax.lax.scan(_pull, passed, inputs, reverse=True)
    if oscillators.keep.ndim < g.ndim:
        slopes = tuple(jnp.sum(slope, axis=0) for slope in slopes)
    return slopes, d_drive, passed


def _pull(passed, here):
    """What reaches the state before a position; and the gradients of its coefficients and its drive."""
    (keep, pull, dt), earlier, velocity, g, reset, held = here
    v, s = heed(reset, None, earlier, earlier)
    ds = g + passed[1]
    dv = passed[0] + dt * ds
    passed = heed(reset, held, (keep * dv, ds - pull * dv), (passed[0], ds))
    slope = dv * v, -dv * s, ds * velocity
    return passed, (heed(None, held, slope, jax.tree.map(jnp.zeros_like, slope)), dv)


def _coefficients(oscillators, rows):
    """The coefficients at a position, for both lanes of a row."""
    both = lambda c: jnp.concatenate([c, c], axis=-1)
    if oscillators.keep.ndim < rows.ndim:
        constant = jax.tree.map(both, oscillators)
        return lambda t: constant
    return lambda t: jax.tree.map(both, row(t, oscillators))

"""A state space whose matrix is diagonal plus low-rank (DPLR), one per feature.

    h'(t) = A h(t) + B x(t)        y(t) = 2 Re C h(t)        A = Λ - Σⱼ Pⱼ Pⱼ*

and by the trapezoid rule, in steps of length Δ,

    h[t] = Ā h[t-1] + B̄ x[t]       Ā = (I - Δ/2 A)⁻¹ (I + Δ/2 A)       B̄ = (I - Δ/2 A)⁻¹ Δ B

Of each conjugate pair of states one is kept, and `P* h` stands for 2 Re Σₙ conj(Pₙ) hₙ, the product
with both. Removing the terms of A one after the other (Sherman-Morrison) takes O(states × rank):

    s = q + h[t-1]                  q = what the diagonal system steps to, (I - Δ/2 Λ)⁻¹ (…)
    s ← s - Uⱼ (Pⱼ* s)              for every j
    h[t] = s - h[t-1]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .chunked_scan import chunked_scan, Positions
from .complex_pair import add, ComplexPair, conjugate, multiply, scale, subtract
from .diagonal_state_space import read_out
from .discretize import discretize_decay, discretize_gain
from .rows import heed, select


class DPLR(NamedTuple):
    """The continuous system of every feature, and how long a step of it is.

    - `eigenvalues`: Λ, of shape `(features, state)` and negative real part.
    - `low_rank`: P, of shape `(features, rank, state)`.
    - `in_vector`: B, of shape `(features, state)`.
    - `dt`: Δ.
    """

    eigenvalues: ComplexPair
    low_rank: ComplexPair
    in_vector: ComplexPair
    dt: Float[Array, " features"]


class Transition(NamedTuple):
    """A step of fixed length, made ready.

    - `decay`, `in_vector`: of the diagonal system.
    - `low_rank`: every Pⱼ, and the Uⱼ that goes with it.
    """

    decay: ComplexPair
    in_vector: ComplexPair
    low_rank: list[tuple[ComplexPair, ComplexPair]]


def discretize(system: DPLR, timestep: Float[Array, ""] | None = None) -> Transition:
    """A step of the usual length, or `timestep` times that."""
    eigenvalues, dt = system.eigenvalues, system.dt[:, None]
    if timestep is not None:
        dt = timestep.astype(dt.dtype) * dt
    gain = discretize_gain(eigenvalues, dt, "bilinear")
    low_rank = []
    for j in range(system.low_rank.real.shape[1]):
        p = jax.tree.map(lambda leaf, j=j: leaf[:, j], system.low_rank)
        u = _remove(low_rank, scale(multiply(gain, p), 0.5))
        low_rank.append((p, scale(u, 1 / (1 + _product(p, u)))))
    decay = discretize_decay(eigenvalues, dt, "bilinear")
    return Transition(decay, multiply(gain, system.in_vector), low_rank)


def advance(
    transition: Transition, h: ComplexPair, x: Float[Array, " features"] | None
) -> ComplexPair:
    """The next state; without an input if `x` is None."""
    q = multiply(transition.decay, h)
    if x is not None:
        q = add(q, scale(transition.in_vector, x[:, None]))
    s = _remove(transition.low_rank, add(q, h))
    return subtract(s, h)


def recurrence(
    system: DPLR, weight: ComplexPair, state: ComplexPair, positions: Positions
) -> tuple[ComplexPair, Float[Array, "time features"]]:
    """The state after all positions, and the outputs `2 Re C h`; `weight` is C."""
    if len(positions.x) == 0:
        return state, positions.x
    regular = discretize(system) if positions.timesteps is None else None

    def chunk(parameters, state, positions):
        system, regular, weight = parameters

        def step(h, here: Positions):
            transition = discretize(system, here.timesteps) if regular is None else regular
            new = advance(transition, heed(here.resets, None, h, h), here.x)
            if here.mask is not None:
                new = select(here.mask, new, h)
            return new, read_out(weight, new)

        return jax.lax.scan(step, state, positions)

    return chunked_scan(chunk, (system, regular, weight), state, positions)


def dense(transition: Transition) -> Float[Array, "features size size"]:
    """Ā as it acts on the real parts and, after them, the imaginary parts of the states."""
    size = transition.decay.real.shape[-1]
    real, imag = jnp.split(jnp.eye(2 * size, dtype=transition.decay.real.dtype), 2, axis=1)
    each = jax.vmap(lambda h: advance(transition, h, None))
    columns = each(ComplexPair(real[:, None], imag[:, None]))
    return jnp.moveaxis(jnp.concatenate(columns, axis=-1), 0, -1)


def _remove(low_rank: list[tuple[ComplexPair, ComplexPair]], s: ComplexPair) -> ComplexPair:
    for p, u in low_rank:
        s = subtract(s, scale(u, _product(p, s)))
    return s


def _product(p: ComplexPair, h: ComplexPair) -> Float[Array, "features 1"]:
    """P* h."""
    return read_out(conjugate(p), h)[..., None]

"""The selective recurrence by its definition: one position after the other.

Here features are split into groups, and a state has shape `(groups, state, members)`: the longest
axis is the last, and what a group shares is contracted without a copy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..complex_pair import add, ComplexPair, multiply
from ..discretize import Discretization, discretize_decay, discretize_gain
from ..rows import heed


Parts = Float[Array, "..."] | ComplexPair


class Inputs(NamedTuple):
    """What comes in at one position; over time with one more axis in front.

    - `x`, `dt`, `decay_dt`: shape `(groups, members)`; the last is None if it is `dt`.
    - `B`, `C`: shape `(groups, state)`.
    """

    x: Float[Array, "*time groups members"]
    dt: Float[Array, "*time groups members"]
    decay_dt: Float[Array, "*time groups members"] | None
    B: Parts
    C: Parts


def advance(method: Discretization, A: Any, h: Any, here: Inputs, reset: Array | None):
    """The state after one position, and its output."""
    x, dt, decay_dt, B, C = here
    decay = discretize_decay(A, (dt if decay_dt is None else decay_dt)[:, None], method)
    gain = discretize_gain(A, dt[:, None], method)
    drive = jax.tree.map(lambda B: _contract("gn,gm->gnm", B, x), B)
    h = add(multiply(decay, heed(reset, None, h, h)), multiply(gain, drive))
    products = jax.tree.map(lambda C, h: _contract("gn,gnm->gm", C, h), C, h)
    if isinstance(products, ComplexPair):  # of each conjugate pair of states there is one
        return h, 2 * (products.real - products.imag)
    return h, products


def sequential_scan(method, A, h0, inputs, resets):
    """The state after all positions, and the outputs."""

    def step(h, at):
        return advance(method, A, h, *at)

    return jax.lax.scan(step, h0, (inputs, resets))


def group(x: Any, groups: int) -> Any:
    """From `(features, state)` to `(groups, state, members)`."""
    split = lambda x: jnp.swapaxes(x.reshape(groups, -1, x.shape[-1]), 1, 2)
    return jax.tree.map(split, x)


def ungroup(x: Any) -> Any:
    """The inverse of `group`."""
    join = lambda x: jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1])
    return jax.tree.map(join, x)


def _contract(formula: str, x: Array, y: Array) -> Array:
    return jnp.einsum(formula, x, y, precision="highest")

"""A recurrence in about √time chunks of as many positions.

The gradient keeps the states between chunks, and computes those within a chunk again: of a state
far larger than the signal, about √time are held at once instead of all.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from .varying import vary_together


State = TypeVar("State")


class Positions(NamedTuple):
    """What a stretch of positions brings into a recurrence.

    - `x`: the inputs.
    - `timesteps`: the time since the previous sample, as a multiple of the usual one.
    - `resets`: True where the previous state is forgotten.
    - `mask`: False where the state passes unchanged.
    """

    x: Shaped[Array, " time *shape"]
    timesteps: Float[Array, " time"] | None = None
    resets: Bool[Array, " time"] | None = None
    mask: Bool[Array, " time"] | None = None


def chunked_scan(
    advance: Callable[[PyTree, State, Positions], tuple[State, Array]],
    parameters: PyTree,
    state: State,
    positions: Positions,
) -> tuple[State, Array]:
    """The state after all positions, and the outputs.

    - `advance`: a chunk's `(parameters, state, positions) -> (state, outputs)`.
    """
    time = len(positions.x)
    chunk = math.isqrt(max(time - 1, 0)) + 1
    padding = -time % chunk
    if padding and positions.mask is None:
        positions = positions._replace(mask=jnp.ones((time,), bool))

    def chunked(array: Array) -> Array:
        array = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
        return array.reshape(-1, chunk, *array.shape[1:])

    state, parameters, positions = vary_together(state, parameters, positions)
    chunk_step = jax.checkpoint(partial(advance, parameters), prevent_cse=False)
    state, y = jax.lax.scan(chunk_step, state, jax.tree.map(chunked, positions))
    return state, y.reshape(-1, *y.shape[2:])[:time]

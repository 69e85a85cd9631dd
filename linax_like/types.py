"""The vocabulary of array shapes.

Every module acts on one example; `jax.vmap` adds the batch at the model's edge.

    time      positions of the sequence
    space     the axes of a grid, one to three; of a sequence, time alone
    features  width of the residual stream
    state     size of a recurrent state
    heads     query heads (kv_heads <= heads)
    head      width of one head
    classes   width of a head's output
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer


Signal = Float[Array, "time features"]  # a whole sequence
Grid = Float[Array, "*space features"]  # an image, a volume, or a sequence
Frame = Float[Array, " features"]  # one position of it
Tokens = Integer[Array, " time"]
Token = Integer[Array, ""]
Mask = Bool[Array, " time"]
Scalar = Float[Array, ""]


class Aux(NamedTuple):
    """What a forward pass yields beside its output; every field is summed over layers and examples.

    - `loss`: auxiliary losses, already weighted, to be added to the training loss.
    - `routed`: choices of an expert by a token.
    - `dropped`: those for which the expert had no room.
    - `busiest`: how many choices there were if every expert were as busy as its layer's busiest.
        Over `routed`, it is the largest load of an expert over the mean load.
    """

    loss: Scalar
    routed: Scalar
    dropped: Scalar
    busiest: Scalar

    def plus(self, other: "Aux") -> "Aux":
        return Aux(*(a + b for a, b in zip(self, other, strict=True)))


def no_aux() -> Aux:
    return Aux(*(jnp.zeros(()) for _ in Aux._fields))

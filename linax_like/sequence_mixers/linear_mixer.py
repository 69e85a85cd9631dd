"""Linear mixing: a learned matrix over time, shared by all features.

    y[t] = Σ_s W[t, s] x[s] / √features          causal: over s ≤ t

W[t, s] does not depend on the length, so that every prefix is mixed by the same matrix.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require_positive
from ..context import SequenceContext
from ..initializers import normal
from ..ops.take import take
from ..precision import einsum
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
    refuse_axis_name,
    require_causal,
)
from .learned_length import places, require_length, require_state_length
from .padding import compact, reorder


INIT_STD = 0.01


@dataclass(frozen=True)
class LinearSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A matrix over time, of `max_length²` numbers.

    - `max_length`: of a sequence, or of a document in it. Longer ones are an error, and where only
        the running program knows, NaN.
    - `causal`: a position sees no later one.
    """

    max_length: int = 1024
    causal: bool = True

    def __post_init__(self):
        require_positive(self, "max_length")

    def build(self, in_features: int, key: PRNGKeyArray) -> "LinearSequenceMixer":
        return LinearSequenceMixer(in_features, self, key)


class LinearState(NamedTuple):
    """The current document, and zeros after it.

    - `inputs`: of its positions.
    - `length`: how many there are.
    """

    inputs: Float[Array, "capacity features"]
    length: Int[Array, ""]


class LinearSequenceMixer(AbstractRecurrentMixer[LinearState]):
    """Mixes positions by a learned matrix.

    The state keeps `max_length` positions, and a step takes time in proportion to them. When a
    document outgrows its state, the output is NaN: nothing is forgotten unnoticed.
    """

    config: LinearSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    weight: Float[Array, "to from"]  # W

    def __init__(self, in_features: int, cfg: LinearSequenceMixerConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        self.weight = normal(key, (cfg.max_length, cfg.max_length), INIT_STD)

    @property
    def causal(self) -> bool:
        return self.config.causal

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        x, context = enter(self, x, context)
        require_length(self, x, context, self.config.max_length)
        refuse_axis_name(self, context)
        if len(x) == 0:
            return x
        x, packed, permutation = compact(x, context)
        position, documents = _places(jnp.zeros((), jnp.int32), packed, len(x))
        y = self._within(x, position, documents)
        y = jnp.where((position < self.config.max_length)[:, None], y, jnp.nan)
        return context.blank_padding(reorder(y.astype(x.dtype), permutation))

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> LinearState:
        require_causal(self, "build it with `causal=True`")
        require_state_length(self, max_length, self.config.max_length)
        inputs = jnp.zeros((max_length, self.in_features), dtype or jnp.float32)
        return LinearState(inputs, jnp.zeros((), jnp.int32))

    def prefill(
        self, state: LinearState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[LinearState, Signal]:
        require_causal(self, "build it with `causal=True`")
        x, context = enter(self, x, context)
        refuse_axis_name(self, context)
        if len(x) == 0:
            return state, x
        x, packed, permutation = compact(x, context)
        position, documents = _places(state.length, packed, len(x))
        inputs, capacity = x.astype(state.inputs.dtype), len(state.inputs)
        before = jnp.where((jnp.arange(capacity) < state.length)[:, None], state.inputs, 0)
        weight = self._scaled(take(self.weight[:, :capacity], position))
        weight = jnp.where((documents == 0)[:, None], weight, 0)
        y = self._within(inputs, position, documents) + einsum("ts,sf->tf", weight, before)
        y = jnp.where((position < capacity)[:, None], y, jnp.nan).astype(x.dtype)
        document, length = packed.last((documents, position + 1), (jnp.int32(0), state.length))
        place = jnp.arange(capacity)
        source = (
            jnp.sum(documents >= 0) - length + place
        )  # where the document's positions are in `x`
        new = inputs[jnp.clip(source, 0, len(x) - 1)]
        old = jnp.where(document == 0, state.inputs, 0)
        inputs = jnp.where(((place < length) & (source >= 0))[:, None], new, old)
        return LinearState(inputs, length), context.blank_padding(reorder(y, permutation))

    def step(
        self, state: LinearState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[LinearState, Frame]:
        require_causal(self, "build it with `causal=True`")
        x, context = enter_step(self, x, context)
        refuse_axis_name(self, context)
        inputs, length = context.forget(state)
        capacity = len(inputs)
        inputs = inputs.at[length].set(x.astype(inputs.dtype))
        weight = take(self.weight[:, :capacity], length)
        weight = jnp.where(
            jnp.arange(capacity) <= length, weight, 0
        )  # for the gradient by the state
        y = einsum("s,sf->f", self._scaled(weight).astype(inputs.dtype), inputs)
        y = jnp.where(length < capacity, y, jnp.nan).astype(x.dtype)
        new = LinearState(inputs, length + 1)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L² · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        forward = 2 * math.prod(spatial_dims) ** 2 * self.in_features
        return forward if inference else 3 * forward

    def _within(
        self, x: Signal, position: Int[Array, " time"], documents: Int[Array, " time"]
    ) -> Signal:
        """What the positions of a chunk give to each other, in at least float32."""
        weight = self._scaled(take(take(self.weight, position), position, 1))
        sees = documents[:, None] == documents
        if self.causal:
            sees = sees & (position[:, None] >= position)
        return einsum("ts,sf->tf", jnp.where(sees, weight, 0).astype(x.dtype), x)

    def _scaled(self, weight: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return weight / math.sqrt(self.in_features)


def _places(
    length: Int[Array, ""], context: SequenceContext, time: int
) -> tuple[Int[Array, " time"], Int[Array, " time"]]:
    """`places`, where padding is a document of its own."""
    position, documents = places(length, context, time)
    if context.mask is not None:
        documents = jnp.where(context.mask, documents, -1)
    return position, documents

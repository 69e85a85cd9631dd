"""What a QKV operator is: a function of queries, keys and values, without projections of its own.

    q, k, v = W_in x                  and further gates, if the operator takes more streams
    y = W_out operator(q, k, v)

`QKVSequenceMixer` projects, checks the width, blanks padding before the operator and after it, and
refuses steps of what is not causal. A sequence mixer f is the operator (q, k, v) ↦ f(q ⊙ k) ⊙ v.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any, Generic

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ..complexity import total
from ..config import AbstractConfig
from ..context import SequenceContext
from ..types import Frame, Grid, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixer, State


@dataclass(frozen=True)
class AbstractQKVOperatorConfig(AbstractConfig):
    """The hyperparameters of a QKV operator."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractQKVOperator":
        """A new operator on streams of width `in_features`."""


class AbstractQKVOperator(eqx.Module):
    """Mixes along time, or over space, what queries, keys and values say."""

    in_features: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether no output depends on a later input."""

    @property
    def num_inputs(self) -> int:
        """How many streams it takes: queries, keys, values, and then further gates."""
        return 3

    @property
    def uses(self) -> frozenset[str]:
        """Which of the context's `positions`, `timesteps` and `condition` make a difference."""
        return frozenset()

    @property
    def spatial_ndims(self) -> frozenset[int]:
        """The numbers of axes that a stream may have before the features: 1 for a sequence."""
        return frozenset({1})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        """As a sequence mixer's: what training must change slowly, and never decay."""
        return frozenset()

    @abc.abstractmethod
    def __call__(
        self,
        streams: tuple[Grid, ...],
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Grid:
        """Applies the operator to whole streams, which hold zeros at padding.

        - `key`: only needed by an operator in which something is random.
        """

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one forward pass (a multiply-add counts as two).

        - `inference`: count the forward pass alone; else the backward pass as well.
        """


class AbstractRecurrentQKVOperator(AbstractQKVOperator, Generic[State]):
    """An operator that can be causal, and can then also advance one position at a time.

    `init_state`, `prefill` and `step` are as in `AbstractRecurrentMixer`, and obey the same laws.
    """

    @abc.abstractmethod
    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> State:
        """The state before the first position of at most `max_length`."""

    @abc.abstractmethod
    def prefill(
        self,
        state: State,
        streams: tuple[Signal, ...],
        *,
        context: SequenceContext | None = None,
    ) -> tuple[State, Signal]:
        """Advances many positions at once."""

    @abc.abstractmethod
    def step(
        self,
        state: State,
        streams: tuple[Frame, ...],
        *,
        context: SequenceContext | None = None,
    ) -> tuple[State, Frame]:
        """Advances one position."""


class MixerOperator(AbstractRecurrentQKVOperator[Any]):
    """A sequence mixer between two gates. Its state is the mixer's."""

    in_features: int = eqx.field(static=True)
    mixer: AbstractSequenceMixer  # f

    def __init__(self, mixer: AbstractSequenceMixer):
        self.in_features = mixer.in_features
        self.mixer = mixer

    @property
    def causal(self) -> bool:
        return self.mixer.causal

    @property
    def uses(self) -> frozenset[str]:
        return self.mixer.uses

    @property
    def spatial_ndims(self) -> frozenset[int]:
        return self.mixer.spatial_ndims

    def __call__(
        self,
        streams: tuple[Grid, ...],
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Grid:
        q, k, v = streams
        return self.mixer(q * k, key, context=context) * v

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> Any:
        return self._recurrent().init_state(max_length, dtype)

    def prefill(
        self, state: Any, streams: tuple[Signal, ...], *, context: SequenceContext | None = None
    ) -> tuple[Any, Signal]:
        q, k, v = streams
        state, y = self._recurrent().prefill(state, q * k, context=context)
        return state, y * v

    def step(
        self, state: Any, streams: tuple[Frame, ...], *, context: SequenceContext | None = None
    ) -> tuple[Any, Frame]:
        q, k, v = streams
        state, y = self._recurrent().step(state, q * k, context=context)
        return state, y * v

    @property
    def complexity(self) -> str:
        return total(self.mixer.complexity, "O(L · d)")

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        gates = 2 * math.prod(spatial_dims) * self.in_features
        mixer = self.mixer.flop_count(spatial_dims, inference)
        return mixer + (gates if inference else 3 * gates)

    def _recurrent(self) -> AbstractRecurrentMixer:
        if not isinstance(self.mixer, AbstractRecurrentMixer):
            raise ValueError(
                f"`{type(self.mixer).__name__}` cannot advance step by step. Use a mixer that can."
            )
        return self.mixer


def as_operator(built: AbstractQKVOperator | AbstractSequenceMixer) -> AbstractQKVOperator:
    return built if isinstance(built, AbstractQKVOperator) else MixerOperator(built)


def recurrent(module: eqx.Module, operator: AbstractQKVOperator) -> AbstractRecurrentQKVOperator:
    """The operator of a module, as one that can advance step by step.

    **Raises:** `ValueError` if it cannot.
    """
    name = type(module).__name__
    if not operator.causal:
        raise ValueError(
            f"`{name}` is not causal, so it cannot advance step by step: build it around an operator "
            "or a mixer that is causal."
        )
    if not isinstance(operator, AbstractRecurrentQKVOperator):
        raise ValueError(
            f"`{name}` cannot advance step by step around a `{type(operator).__name__}`. Use an "
            "operator that can."
        )
    return operator

"""What a sequence mixer is: a config, a function of a whole sequence, and (if causal) a step."""

import abc
from dataclasses import dataclass
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from ..config import AbstractConfig
from ..context import SequenceContext
from ..ops.varying import vary_together
from ..types import Frame, Grid, Signal


State = TypeVar("State")
AXES = {1: ("time",), 2: ("height", "width"), 3: ("depth", "height", "width")}


@dataclass(frozen=True)
class AbstractSequenceMixerConfig(AbstractConfig):
    """The hyperparameters of a sequence mixer."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractSequenceMixer":
        """A new mixer of width `in_features`."""


class AbstractSequenceMixer(eqx.Module):
    """Mixes information along time, or over space."""

    in_features: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether no output depends on a later input."""

    @property
    def uses(self) -> frozenset[str]:
        """Which of the context's `positions`, `timesteps` and `condition` make a difference."""
        return frozenset()

    @property
    def spatial_ndims(self) -> frozenset[int]:
        """The numbers of axes that its input may have before the features: 1 for a sequence."""
        return frozenset({1})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        """The fields that set the recurrence's eigenvalues, step sizes and gains.

        Small changes of these change the memory a lot: training gives them a learning rate of their
        own, and never weight decay.
        """
        return frozenset()

    @abc.abstractmethod
    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Grid:
        """Applies the mixer to one whole sequence, or one whole grid.

        - `key`: only needed by a mixer in which something is random.
        """

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one forward pass (a multiply-add counts as two).

        - `spatial_dims`: the length of the sequence, `(time,)`, or the sizes of the grid.
        - `inference`: count the forward pass alone; else the backward pass as well.
        """


class AbstractRecurrentMixer(AbstractSequenceMixer, Generic[State]):
    """A mixer that can be causal, and can then also advance one position at a time.

    1. `mixer(x)` is `mixer.prefill(mixer.init_state(len(x)), x)[1]`.
    2. `prefill` is the fold of `step`, outputs and state.
    3. Hence any split of a sequence into chunks gives the same.

    On a non-causal configuration `init_state`, `prefill` and `step` raise a `ValueError`.
    """

    @abc.abstractmethod
    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> State:
        """The state before the first position.

        - `max_length`: how many positions will come at most.
        - `dtype`: of cached activations; by default float32. Recurrent states stay at least float32.
        """

    @abc.abstractmethod
    def prefill(
        self, state: State, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[State, Signal]:
        """Advances many positions at once."""

    @abc.abstractmethod
    def step(
        self, state: State, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[State, Frame]:
        """Advances one position. The context holds the scalars of that position."""


def fold(
    mixer: AbstractRecurrentMixer[State],
    state: State,
    x: Signal,
    *,
    context: SequenceContext | None = None,
) -> tuple[State, Signal]:
    """`prefill` by its definition, for mixers that have nothing faster."""
    context = SequenceContext() if context is None else context
    before = None if context.segment_ids is None else context.previous_segment_ids()

    def step(state, inputs):
        x, per_position, before = inputs
        here = context.replace(**per_position, previous_segment_id=before)
        return mixer.step(state, x, context=here)

    state, x = vary_together(state, x)
    return jax.lax.scan(step, state, (x, context.over_time(), before))


def enter(
    mixer: AbstractSequenceMixer, x: Array, context: SequenceContext | None
) -> tuple[Array, SequenceContext]:
    """What every mixer does first: checks the input's shape, and blanks its padding.

    **Raises:** `ValueError` that names the mixer and what came.
    """
    width, ndims = mixer.in_features, mixer.spatial_ndims
    if x.ndim - 1 not in ndims or x.shape[-1] != width:
        shapes = " or ".join(f"({', '.join(AXES[n])}, {width})" for n in sorted(ndims))
        _refuse_shape(mixer, f"it takes one example of shape {shapes}", x)
    return _enter(mixer, x, context)


def enter_step(
    mixer: AbstractSequenceMixer, x: Array, context: SequenceContext | None
) -> tuple[Array, SequenceContext]:
    """What every `step` does first: as `enter`, for one position."""
    if x.shape != (mixer.in_features,):
        _refuse_shape(mixer, f"`step` takes one position of shape ({mixer.in_features},)", x)
    return _enter(mixer, x, context)


def _refuse_shape(mixer: AbstractSequenceMixer, law: str, x: Array) -> None:
    raise ValueError(
        f"`{type(mixer).__name__}` has width {mixer.in_features}: {law}. Received {x.shape}. "
        "Use `jax.vmap` for a batch."
    )


def _enter(
    mixer: AbstractSequenceMixer, x: Array, context: SequenceContext | None
) -> tuple[Array, SequenceContext]:
    context = SequenceContext() if context is None else context
    for name, value in context.over_time().items():
        if value.shape != x.shape[:-1]:
            raise ValueError(
                f"`{type(mixer).__name__}` was given `context.{name}` of shape {value.shape} for an "
                f"input of shape {x.shape}: it must have shape {x.shape[:-1]}."
            )
        if x.ndim > 2 and name != "mask":
            raise ValueError(
                f"`context.{name}` is about the order of time, which a grid of shape {x.shape} does "
                "not have. Leave it out."
            )
    if context.timesteps is not None:
        context = context.replace(timesteps=context.blank_padding(context.timesteps))
    return context.blank_padding(x), context


def keep_at_padding(context: SequenceContext, new: State, old: State) -> State:
    """In `step`: the state that a position of padding leaves as it was."""
    mask = context.mask
    return new if mask is None else jax.tree.map(lambda n, o: jnp.where(mask, n, o), new, old)


def require_causal(mixer: AbstractSequenceMixer, remedy: str) -> None:
    if not mixer.causal:
        raise ValueError(
            f"`{type(mixer).__name__}` is not causal, so it cannot advance step by step: {remedy}."
        )


def refuse_axis_name(mixer: eqx.Module, context: SequenceContext) -> None:
    if context.axis_name is not None:
        raise ValueError(
            f"`{type(mixer).__name__}` cannot split time over devices yet. Leave "
            f"`context.axis_name` (now {context.axis_name!r}) out."
        )

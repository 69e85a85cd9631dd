"""What a mixer of several streams is: projections for each modality, and one mixing for all.

    q, k, v = W[m] x                for the positions of modality m
    y       = W'[m] mix(q, k, v)    over the positions of all modalities, in their joint order

(Mixture-of-Transformers, https://arxiv.org/abs/2411.04996)
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ..config import AbstractConfig, require
from ..context import SequenceContext
from ..streams import (
    advance_streams,
    Counting,
    enter_streams,
    Frames,
    Joint,
    start_streams,
    Streams,
    StreamsContext,
    StreamsCursor,
)


@dataclass(frozen=True)
class AbstractStreamsMixerConfig(AbstractConfig):
    """The hyperparameters of a mixer of several streams."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractStreamsMixer":
        """A new mixer of streams of width `in_features`."""


class StreamsState(NamedTuple):
    """What a mixer carries from one chunk to the next.

    - `mixing`: of what mixes all positions.
    - `cursor`: how far the streams have come.
    """

    mixing: Any
    cursor: StreamsCursor


class AbstractStreamsMixer(eqx.Module):
    """Mixes the positions of all streams, each projected as its modality says.

    It obeys the contract of a recurrent mixer, with dicts of streams in place of one sequence: read in
    chunks, the chunks come one after the other in the joint order. `step` takes the next position, of
    the one modality in its dict.
    """

    in_features: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def modalities(self) -> tuple[str, ...]:
        """The streams that there may be, in the order in which they come."""

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether no output depends on a later position."""

    @property
    @abc.abstractmethod
    def uses(self) -> frozenset[str]:
        """Which of `positions` and `timesteps` make a difference."""

    @abc.abstractmethod
    def __call__(
        self,
        streams: Streams,
        key: PRNGKeyArray | None = None,
        *,
        context: StreamsContext | None = None,
    ) -> Streams:
        """Applies the mixer to whole streams."""

    @abc.abstractmethod
    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StreamsState:
        """The state before the first position.

        - `max_length`: how many positions will come at most, of all streams together.
        """

    @abc.abstractmethod
    def prefill(
        self, state: StreamsState, streams: Streams, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Streams]:
        """Advances many positions at once."""

    @abc.abstractmethod
    def step(
        self, state: StreamsState, frames: Frames, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Frames]:
        """Advances one position. The context holds its scalars."""

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        """Floating-point operations of one pass over so many positions of each modality."""


def require_modalities(cfg: AbstractConfig, modalities: tuple[str, ...]) -> None:
    """Checks that a config names its modalities well."""
    named = all(name and not set(name) & set("/*?[]") for name in modalities)
    law = "at least one name, none twice, none empty or with any of / * ? [ ]"
    fits = len(modalities) > 0 and len(set(modalities)) == len(modalities) and named
    require(fits, cfg, "modalities", law)


def open_chunk(
    mixer: AbstractStreamsMixer,
    streams: Streams,
    context: StreamsContext | None,
    cursor: StreamsCursor | None,
    counting: Counting,
) -> tuple[Streams, Joint, StreamsCursor]:
    """The streams without what is at padding, their joint order, and the cursor after them.

    - `cursor`: None for whole streams.
    """
    enter_streams(mixer, mixer.modalities, mixer.in_features, streams)
    context = StreamsContext() if context is None else context
    cursor = start_streams(mixer.modalities) if cursor is None else cursor
    sizes = {name: len(x) for name, x in streams.items()}
    cursor, joint = advance_streams(mixer.modalities, cursor, context, sizes, counting)
    return context.blank_padding(streams), joint, cursor


def step_by_chunk(
    advance: Callable[[Streams, StreamsContext], tuple[StreamsState, Streams]],
    frames: Frames,
    context: StreamsContext | None,
) -> tuple[StreamsState, Frames]:
    """A step as the chunk of one position that it is.

    **Raises:** `ValueError` unless there is exactly one frame.
    """
    if len(frames) != 1:
        raise ValueError(
            "`step` takes the next position, which is of one modality: a dict with one entry. "
            f"Received {sorted(frames)}."
        )
    context = StreamsContext() if context is None else context.lift()
    state, y = advance({name: x[None] for name, x in frames.items()}, context)
    return state, {name: x[0] for name, x in y.items()}


def at_one_position(context: SequenceContext) -> SequenceContext:
    """The context of a chunk of one position, as that of a step."""
    return context.map_time(lambda value: value[0])

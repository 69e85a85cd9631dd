"""What a block is: a map of the residual stream that reports auxiliary results."""

import abc
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..channel_mixers import AbstractChannelMixer, AbstractRoutedChannelMixer
from ..config import AbstractConfig
from ..context import SequenceContext
from ..sequence_mixers import AbstractRecurrentMixer, AbstractSequenceMixer
from ..streams import Frames, Streams, StreamsContext
from ..types import Aux, Frame, Grid, no_aux, Signal


@dataclass(frozen=True)
class AbstractBlockConfig(AbstractConfig):
    """The hyperparameters of a block."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractBlock":
        """A new block on a residual stream of width `in_features`."""


class AbstractBlock(eqx.Module):
    """Maps the residual stream to itself."""

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether no output depends on a later input."""

    @property
    @abc.abstractmethod
    def uses(self) -> frozenset[str]:
        """Which of the context's `positions`, `timesteps` and conditions make a difference."""

    @abc.abstractmethod
    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> tuple[Grid, Aux]:
        """Applies the block to a whole sequence or grid. With a `key`, dropout is on."""

    @abc.abstractmethod
    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> PyTree:
        """The state before the first position. Raises `ValueError` if the block is not causal."""

    @abc.abstractmethod
    def prefill(
        self, state: PyTree, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Signal]:
        """Advances many positions at once."""

    @abc.abstractmethod
    def step(
        self, state: PyTree, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Frame]:
        """Advances one position."""

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass."""


@dataclass(frozen=True)
class AbstractStreamsBlockConfig(AbstractConfig):
    """The hyperparameters of a block for several streams."""

    @abc.abstractmethod
    def build(self, in_features: int, key: PRNGKeyArray) -> "AbstractStreamsBlock":
        """A new block on residual streams of width `in_features`."""


class AbstractStreamsBlock(eqx.Module):
    """Maps a residual stream for each modality to itself, in the same forms as a block."""

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
    ) -> tuple[Streams, Aux]:
        """Applies the block to whole streams."""

    @abc.abstractmethod
    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> PyTree:
        """The state before the first position. Raises `ValueError` if the block is not causal."""

    @abc.abstractmethod
    def prefill(
        self, state: PyTree, streams: Streams, *, context: StreamsContext | None = None
    ) -> tuple[PyTree, Streams]:
        """Advances many positions at once."""

    @abc.abstractmethod
    def step(
        self, state: PyTree, frames: Frames, *, context: StreamsContext | None = None
    ) -> tuple[PyTree, Frames]:
        """Advances one position, of one modality."""

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        """Floating-point operations of one pass over so many positions of each modality."""


def recurrent(mixer: AbstractSequenceMixer) -> AbstractRecurrentMixer:
    """The mixer, as one that can advance step by step.

    **Raises:** `ValueError` if it cannot.
    """
    if not isinstance(mixer, AbstractRecurrentMixer):
        raise ValueError(
            f"`{type(mixer).__name__}` is not causal, so this block cannot advance step by step. Build "
            "it with a causal sequence mixer."
        )
    return mixer


def mix_channels(
    mixer: AbstractChannelMixer | AbstractRoutedChannelMixer,
    x: Array,
    key: PRNGKeyArray | None,
    context: SequenceContext | None,
) -> tuple[Array, Aux]:
    """A channel mixer of either tier, and what it yields beside its values."""
    if isinstance(mixer, AbstractRoutedChannelMixer):
        return mixer(x, key, mask=None if context is None else context.mask)
    return mixer(x, key), no_aux()


def keep(y: Array, rate: float, uniform: Array) -> Array:
    """Dropout: zeros where a uniform number is below `rate`, else `y`, scaled to keep the mean."""
    return jnp.where(uniform >= rate, y / (1 - rate), jnp.zeros_like(y))

"""What an encoder is: from raw input to features."""

import abc
from dataclasses import dataclass

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray

from ..config import AbstractConfig
from ..context import SequenceContext
from ..types import Grid


@dataclass(frozen=True)
class AbstractEncoderConfig(AbstractConfig):
    """The hyperparameters of an encoder."""

    @abc.abstractmethod
    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "AbstractEncoder":
        """A new encoder from `in_features` (the vocabulary, for tokens) to `out_features`."""


class AbstractEncoder(eqx.Module):
    """Turns a raw sequence, or an image, into features."""

    @property
    @abc.abstractmethod
    def uses(self) -> frozenset[str]:
        """Which of the context's `positions`, `timesteps` and `condition` make a difference."""

    @abc.abstractmethod
    def __call__(self, x: Array, *, context: SequenceContext) -> Grid:
        """Encodes a whole sequence or image; padding becomes zeros."""

    @abc.abstractmethod
    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass that yields so many features along every axis.

        - `inference`: count the forward pass alone; else the backward pass as well.
        """

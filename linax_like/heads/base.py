"""What a head is: from features to outputs."""

import abc
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import AbstractConfig
from ..context import SequenceContext
from ..types import Aux, Grid


class Logits(NamedTuple):
    """What a classifier or language model returns: unnormalised log-probabilities, and `Aux`."""

    logits: Float[Array, "*time classes"]
    aux: Aux


class Values(NamedTuple):
    """What a regression model returns: real values, and `Aux`."""

    values: Float[Array, "*space out"]
    aux: Aux


@dataclass(frozen=True)
class AbstractHeadConfig(AbstractConfig):
    """The hyperparameters of a head."""

    @abc.abstractmethod
    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "AbstractHead":
        """A new head from `in_features` to `out_features` (the vocabulary, the classes …)."""


class AbstractHead(eqx.Module):
    """Turns the features of a sequence or grid into outputs."""

    @abc.abstractmethod
    def __call__(self, x: Grid, aux: Aux, *, context: SequenceContext) -> Logits | Values:
        """Reads outputs off all of them; `aux` is passed on."""

    @abc.abstractmethod
    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass over so many features along every axis.

        - `inference`: count the forward pass alone; else the backward pass as well.
        """

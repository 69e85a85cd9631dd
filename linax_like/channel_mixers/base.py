"""What a channel mixer is: a config, and a function of one position.

A routed channel mixer sends positions different ways, and tells how evenly: it has losses of its own.
"""

import abc
from dataclasses import dataclass

import equinox as eqx
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..config import AbstractConfig
from ..types import Aux


@dataclass(frozen=True)
class AbstractChannelMixerConfig(AbstractConfig):
    """The hyperparameters of a channel mixer."""

    @abc.abstractmethod
    def build(
        self, in_features: int, key: PRNGKeyArray
    ) -> "AbstractChannelMixer | AbstractRoutedChannelMixer":
        """A new channel mixer of width `in_features`."""


class AbstractChannelMixer(eqx.Module):
    """Mixes the features of each position by itself; leading axes are only carried along."""

    in_features: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "*shape features"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*shape features"]:
        """Applies the mixer at every position.

        - `key`: only needed by a mixer in which something is random.
        """

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, positions: int, inference: bool = False) -> int:
        """Floating-point operations of one forward pass (a multiply-add counts as two).

        - `positions`: how many positions it is applied to.
        - `inference`: count the forward pass alone; else the backward pass as well.
        """


class AbstractRoutedChannelMixer(eqx.Module):
    """Mixes the features of each position by the experts that it chooses for it.

    Positions share nothing but the auxiliary losses, in which padding does not count.
    """

    in_features: eqx.AbstractVar[int]

    @abc.abstractmethod
    def __call__(
        self,
        x: Float[Array, "*shape features"],
        key: PRNGKeyArray | None = None,
        *,
        mask: Bool[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape features"], Aux]:
        """Applies the mixer at every position; what it yields at padding is zero.

        - `key`: only needed by a mixer in which something is random.
        - `mask`: False at padding.
        """

    @property
    @abc.abstractmethod
    def complexity(self) -> str:
        """How the work grows: `"O(L log L · d)"`, in the letters of `linax_like/complexity.py`."""

    @abc.abstractmethod
    def flop_count(self, positions: int, inference: bool = False) -> int:
        """As of any channel mixer; the experts that a position does not reach cost nothing."""


def require_width(
    mixer: AbstractChannelMixer | AbstractRoutedChannelMixer, x: Float[Array, "*shape features"]
) -> None:
    """**Raises:** `ValueError` that names the mixer and what came, if the width is wrong."""
    if x.shape[-1:] != (mixer.in_features,):
        raise ValueError(
            f"`{type(mixer).__name__}` has width {mixer.in_features}: its input must have shape "
            f"(..., {mixer.in_features}). Received {x.shape}."
        )

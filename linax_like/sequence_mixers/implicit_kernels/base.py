"""What an implicit kernel is: a small network of the coordinates of a lag.

The coordinates are physical, lag times spacing over extent, one for each axis. They depend neither on
how long a signal is nor on what was asked before, so that a kernel is one function, sampled anywhere.
"""

import abc
from dataclasses import dataclass

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ...config import AbstractConfig
from ...precision import linear


@dataclass(frozen=True)
class AbstractImplicitKernelConfig(AbstractConfig):
    """The hyperparameters of an implicit kernel."""

    @abc.abstractmethod
    def build(
        self, in_features: int, out_features: int, key: PRNGKeyArray
    ) -> "AbstractImplicitKernel":
        """A new kernel of `in_features` axes for `out_features` channels, of about unit variance."""


class AbstractImplicitKernel(eqx.Module):
    """A function of the coordinates, one value for each channel.

    It is linear in waves that all channels share.
    """

    out_weight: eqx.AbstractVar[Float[Array, "channels hidden"]]
    out_bias: eqx.AbstractVar[Float[Array, " channels"]]

    @property
    @abc.abstractmethod
    def uses_condition(self) -> bool:
        """Whether a condition modulates the kernel."""

    def __call__(
        self,
        coordinates: Float[Array, "*lags axes"],
        condition: Float[Array, " condition"] | None = None,
    ) -> Float[Array, "*lags channels"]:
        """The kernel at these coordinates, in their dtype."""
        *lags, axes = coordinates.shape
        # One row for each point: products of more axes, and their gradients, take longer.
        waves = self.waves_at(coordinates.reshape(-1, axes), condition)
        with jax.default_matmul_precision("highest"):
            return linear(waves, self.out_weight, self.out_bias).reshape(*lags, -1)

    @abc.abstractmethod
    def waves_at(
        self,
        coordinates: Float[Array, "lags axes"],
        condition: Float[Array, " condition"] | None = None,
    ) -> Float[Array, "lags hidden"]:
        """The waves, of which every channel is a sum by its `out_weight` and `out_bias`."""

    @abc.abstractmethod
    def flop_count(self, points: int) -> int:
        """Floating-point operations of one forward pass at that many lags."""


def pass_straight(x: Array, bounded: Array) -> Array:
    """`bounded`, with the gradient of `x`: what has left its bounds can come back."""
    return x + jax.lax.stop_gradient(bounded - x)

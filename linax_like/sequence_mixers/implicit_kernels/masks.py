"""Windows on implicit kernels, from short to long over the channels.

exponential   m(p) = exp(-Σ_d |p_d| δ)
Gaussian      m(p) = exp(-½ Σ_d (p_d / σ_d)²)         σ trained, within bounds
"""

import abc
import math
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...config import AbstractConfig, require, require_choice, require_positive
from ...initializers import constant
from ...precision import linear
from .base import pass_straight


@dataclass(frozen=True)
class AbstractKernelMaskConfig(AbstractConfig):
    """The hyperparameters of a window."""

    @abc.abstractmethod
    def build(
        self, in_features: int, out_features: int, key: PRNGKeyArray
    ) -> "AbstractKernelMask":
        """A new window over `in_features` axes for `out_features` channels. Nothing is random."""


class AbstractKernelMask(eqx.Module):
    """A factor of a kernel at every lag, for every channel: exp(-rates · distances)."""

    def __call__(self, coordinates: Float[Array, "*lags axes"]) -> Float[Array, "*lags channels"]:
        """The window at these coordinates, in their dtype."""
        # A product of matrices, whose gradient is one as well: XLA sums slowly over a grid.
        with jax.default_matmul_precision("highest"):
            return jnp.exp(-linear(self.distances(coordinates), self.rates()))

    @abc.abstractmethod
    def distances(self, coordinates: Float[Array, "*lags axes"]) -> Float[Array, "*lags kinds"]:
        """How far it is to these coordinates, in one or several senses."""

    @abc.abstractmethod
    def rates(self) -> Float[Array, "channels kinds"]:
        """How fast each channel decays with each of the distances."""

    @abc.abstractmethod
    def flop_count(self, points: int) -> int:
        """Floating-point operations of one forward pass at that many lags."""


@dataclass(frozen=True)
class ExponentialMaskConfig(AbstractKernelMaskConfig):
    """Exponential decay, which is not trained.

    - `fast_decay`, `slow_decay`: δ of the last and of the first channel, shared out over the axes.
        The defaults leave 1e-6 and 0.1 at the edge of the extent.
    """

    fast_decay: float = 13.81
    slow_decay: float = 2.3

    def __post_init__(self):
        require_positive(self, "fast_decay", "slow_decay")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "ExponentialMask":
        return ExponentialMask(self, in_features, out_features)


class ExponentialMask(AbstractKernelMask):
    """Exponential decay, equal along every axis."""

    config: ExponentialMaskConfig = eqx.field(static=True)
    axes: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)

    def distances(self, coordinates: Float[Array, "*lags axes"]) -> Float[Array, "*lags kinds"]:
        return jnp.sum(jnp.abs(coordinates), axis=-1, keepdims=True)

    def rates(self) -> Float[Array, "channels kinds"]:
        cfg = self.config
        rates = np.linspace(cfg.slow_decay, cfg.fast_decay, self.channels) / self.axes
        return jnp.asarray(rates[:, None])

    def flop_count(self, points: int) -> int:
        return 2 * points * self.channels


@dataclass(frozen=True)
class GaussianMaskConfig(AbstractKernelMaskConfig):
    """A trained Gaussian window, in units of the extent.

    - `start`: where σ starts, of the first and of the last channel, log-spaced between them.
        Descending, the first channels are the widest: so that with `SIRENKernelConfig` of ascending
        `frequencies` and an `off_block_scale` the low bands have the wide windows.
    - `bounds`: of σ, which a step of training cannot leave.
    - `parametrization`: what is trained: σ itself, its logarithm, or its inverse softplus.
    """

    start: tuple[float, float] = (0.01, 0.466)
    bounds: tuple[float, float] = (0.001, 3.122)
    parametrization: Literal["direct", "log", "softplus"] = "direct"

    def __post_init__(self):
        require_choice(self, "parametrization")
        low, high = self.bounds
        require(0 < low < high, self, "bounds", "positive and ascending")
        require(low <= min(self.start), self, "start", "within `bounds`")
        require(max(self.start) <= high, self, "start", "within `bounds`")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "GaussianMask":
        return GaussianMask(self, in_features, out_features)


class GaussianMask(AbstractKernelMask):
    """A Gaussian window, of its own width along every axis."""

    config: GaussianMaskConfig = eqx.field(static=True)
    std: Float[Array, "axes channels"]  # σ, as `parametrization` says

    def __init__(self, cfg: GaussianMaskConfig, axes: int, channels: int):
        std = np.geomspace(*cfg.start, channels)
        stored = {"direct": std, "log": np.log(std), "softplus": np.log(np.expm1(std))}
        self.config = cfg
        self.std = constant(stored[cfg.parametrization], (axes, channels))

    def distances(self, coordinates: Float[Array, "*lags axes"]) -> Float[Array, "*lags kinds"]:
        return jnp.square(coordinates)

    def rates(self) -> Float[Array, "channels kinds"]:
        return 1 / (2 * jnp.square(self._bounded().T))

    def flop_count(self, points: int) -> int:
        return points * (3 * self.std.size + 2 * self.std.shape[1])

    def _bounded(self) -> Float[Array, "axes channels"]:
        low, high = self.config.bounds
        match self.config.parametrization:
            case "direct":
                return pass_straight(self.std, jnp.clip(self.std, low, high))
            case "log":
                log_std = jnp.clip(self.std, math.log(low), math.log(high))
                return jnp.exp(pass_straight(self.std, log_std))
            case "softplus":
                low, high = math.log(math.expm1(low)), math.log(math.expm1(high))
                return jax.nn.softplus(pass_straight(self.std, jnp.clip(self.std, low, high)))

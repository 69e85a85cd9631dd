"""S4D (Gu, Gupta et al., 2022, https://arxiv.org/abs/2206.11893): a diagonal system per feature.

    h[t] = exp(Δλ) h[t-1] + g x[t]           one complex vector h per feature
    y[t] = 2 Re Σₙ Cₙ hₙ[t] + D x[t]          g = (exp(Δλ) - 1) / λ    (zoh, and others)
    K[l] = 2 Re Σₙ Cₙ gₙ exp(l Δλₙ)           y = K * x + D x, as a convolution

The input matrix B is 1, as only its product with C matters. Of each conjugate pair of states one
is kept, hence the 2. For samples at irregular times `context.timesteps` scale Δ.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray
from numpy.typing import NDArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, normal, split, uniform
from ..ops.chunked_scan import Positions
from ..ops.complex_pair import ComplexPair, scale
from ..ops.diagonal_state_space import (
    Diagonal,
    discretize,
    impulse_response,
    read_out,
    recurrence,
)
from ..ops.hippo import diagonal_legs
from ..ops.long_conv import long_conv, long_conv_flops
from ..precision import accumulation_dtype, cast_like, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step
from .padding import convolve, is_convolution
from .recurrence import step_state


@dataclass(frozen=True)
class S4DSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A complex diagonal state space for every feature by itself.

    - `state_dim`: size of a feature's state, conjugates included. Even.
    - `transposed`: sequences have shape `(features, time)` instead of `(time, features)`.
    - `dt_min`, `dt_max`: the range in which Δ starts, uniform in its logarithm, one per feature.
    - `init`: where λ starts: `"lin"` -1/2 + iπn, `"legs"` the diagonal of HiPPO-LegS, `"inv"` its
        approximation, `"real"` -(n+1).
    - `discretization`: how the continuous system becomes a step.
    """

    state_dim: int = 64
    transposed: bool = False
    dt_min: float = 0.001
    dt_max: float = 0.1
    init: Literal["legs", "lin", "inv", "real"] = "lin"
    discretization: Literal["zoh", "bilinear", "dirac"] = "zoh"

    def __post_init__(self):
        require_positive(self, "state_dim", "dt_min")
        require(self.state_dim % 2 == 0, self, "state_dim", "even: its states are conjugate pairs")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")
        require_choice(self, "init", "discretization")

    def build(self, in_features: int, key: PRNGKeyArray) -> "S4DSequenceMixer":
        return S4DSequenceMixer(in_features, self, key)


class S4DSequenceMixer(AbstractRecurrentMixer[ComplexPair]):
    """Complex diagonal state spaces. The state is h, shape `(features, state_dim / 2)`."""

    config: S4DSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    log_decay: Float[Array, "features state"]  # log(-Re λ)
    frequency: Float[Array, "features state"]  # Im λ
    log_step: Float[Array, " features"]  # log Δ
    out_proj: Float[Array, "2 features state"]  # C: real, imaginary
    skip: Float[Array, " features"]  # D

    def __init__(self, in_features: int, cfg: S4DSequenceMixerConfig, key: PRNGKeyArray):
        step_key, out_key, skip_key = split(key, 3)
        shape = (in_features, cfg.state_dim // 2)
        eigenvalues = np.tile(_initial_eigenvalues(cfg), (in_features, 1))
        step_range = math.log(cfg.dt_min), math.log(cfg.dt_max)
        self.config = cfg
        self.in_features = in_features
        self.log_decay = constant(np.log(-eigenvalues.real))
        self.frequency = constant(eigenvalues.imag)
        self.log_step = uniform(step_key, (in_features,), *step_range)
        self.out_proj = normal(out_key, (2, *shape), math.sqrt(0.5))  # E|C|² = 1
        self.skip = normal(skip_key, (in_features,))

    @property
    def causal(self) -> bool:
        return True

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"timesteps"})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"log_decay", "frequency", "log_step"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    @property
    def transposed(self) -> bool:
        return self.config.transposed

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        if not is_convolution(context):
            return self.prefill(self.init_state(0, x.dtype), x, context=context)[1]
        x, context = self._enter(x, context)
        kernel = self.kernel(len(x), accumulation_dtype(x.dtype))
        kernel = kernel.at[:, :1].add(self.skip.astype(kernel.dtype)[:, None])
        return self._leave(convolve(partial(long_conv, kernel=kernel.T), x, context), context)

    def kernel(
        self, length: int, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "features length"]:
        """K, the response to an impulse, without the skip. Its gradient computes it again."""

        def respond(mixer: "S4DSequenceMixer") -> Float[Array, "features length"]:
            system, weight = mixer._system(dtype)
            return impulse_response(system, mixer.config.discretization, weight, length)

        return jax.checkpoint(respond)(self)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> ComplexPair:
        zero = jnp.zeros(self.frequency.shape, accumulation_dtype(dtype or jnp.float32))
        return ComplexPair(zero, zero)

    def prefill(
        self, state: ComplexPair, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Signal]:
        x, context = self._enter(x, context)
        drive = upcast(x)
        system, weight = self._system(drive.dtype)
        state, y = recurrence(
            system,
            self.config.discretization,
            weight,
            cast_like(state, drive),
            Positions(drive[..., None], context.timesteps, context.resets(), context.mask),
            context.axis_name,
        )
        y = y + self.skip.astype(y.dtype) * drive
        return state, self._leave(y.astype(x.dtype), context)

    def step(
        self, state: ComplexPair, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Frame]:
        x, context = enter_step(self, x, context)
        drive = upcast(x)
        system, weight = self._system(drive.dtype)
        decay, gain = discretize(system, self.config.discretization, context.timesteps)
        new = step_state(decay, scale(gain, drive[:, None]), state, context)
        y = read_out(weight, new) + self.skip.astype(drive.dtype) * drive
        return new, context.blank_padding(y.astype(x.dtype))

    @property
    def complexity(self) -> str:
        return "O(L log L · d + L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time = math.prod(spatial_dims)
        kernel = 2 * time * self.state_dim + 2 * time
        forward = self.in_features * (long_conv_flops(time) + kernel)
        return forward if inference else 3 * forward

    def _enter(self, x: Array, context: SequenceContext | None) -> tuple[Array, SequenceContext]:
        """The sequence with time first."""
        if not self.transposed:
            return enter(self, x, context)
        if x.shape[0] != self.in_features:
            raise ValueError(
                "`S4DSequenceMixer` was built with `transposed=True`: it takes one sequence of "
                f"shape ({self.in_features}, time). Received {x.shape}."
            )
        return enter(self, x.T, context)

    def _leave(self, y: Signal, context: SequenceContext) -> Array:
        """The output, given it with time first."""
        y = context.blank_padding(y)
        return y.T if self.transposed else y

    def _system(self, dtype: DTypeLike) -> tuple[Diagonal, ComplexPair]:
        """λ and Δ, and C."""
        log_decay, frequency, log_step, real, imag = (
            array.astype(dtype)
            for array in (self.log_decay, self.frequency, self.log_step, *self.out_proj)
        )
        eigenvalues = ComplexPair(-jnp.exp(log_decay), frequency)
        return Diagonal(eigenvalues, jnp.exp(log_step)[:, None]), ComplexPair(real, imag)


def _initial_eigenvalues(cfg: S4DSequenceMixerConfig) -> NDArray[np.complexfloating]:
    size = cfg.state_dim
    n = np.arange(size // 2, dtype=np.float64)
    match cfg.init:
        case "lin":
            return -0.5 + 1j * np.pi * n
        case "inv":
            return -0.5 + 1j * size / np.pi * (size / (2 * n + 1) - 1)
        case "legs":
            return diagonal_legs(size).eigenvalues[size // 2 :]
        case "real":
            return -(n + 1) + 0j

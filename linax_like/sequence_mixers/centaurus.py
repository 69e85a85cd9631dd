"""Centaurus (Pei, 2025, https://arxiv.org/abs/2501.13230): convolution-like connected state spaces.

    sₙ'(t) = Aₙ ⊙ sₙ(t) + uₙ(t)                    several complex states for every inner channel n
    vₙ[t] = Σₘ E[n,m] Re sₙₘ[t]
    K[n,l] = Σₘ E[n,m] Re g exp(l Δₙ A[n,m])       v = K * u, as a convolution; g = (exp(ΔA) - 1) / A, …

How features and inner channels are connected is the mode, as in convolutional networks:

    neck       u = B x, y = C v                    any number of inner channels
    pointwise  u = B x, y = C v                    one state per inner channel, without E
    depthwise  uᵢ = Bᵢ xᵢ, yᵢ = Cᵢ vᵢ              an inner channel per feature (depthwise-separable)
    full       uₒᵢ = Bₒᵢ xᵢ, yₒ = Σᵢ Cₒᵢ vₒᵢ       an inner channel per pair of features

There is no skip. For samples at irregular times `context.timesteps` scale Δ. In lrnnx every
discretisation is Euler's, g = Δ, and Re A may become positive; here it is minus an exponential.
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

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split, uniform
from ..ops.chunked_scan import Positions
from ..ops.complex_pair import ComplexPair
from ..ops.diagonal_state_space import (
    Diagonal,
    discretize,
    impulse_response,
    read_out,
    recurrence,
)
from ..ops.discretize import Discretization
from ..ops.long_conv import long_conv, long_conv_flops, long_conv_full
from ..precision import accumulation_dtype, cast_like, linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, enter_step
from .padding import convolve, is_convolution
from .recurrence import step_state


@dataclass(frozen=True)
class CentaurusSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Diagonal state spaces between projections of a chosen connectivity.

    - `mode`: how features and inner channels are connected. `"full"` has as many inner channels as
        pairs of features: for small widths.
    - `state_dim`: number of inner channels of `"neck"`, and of groups of them in `"pointwise"`; by
        default the width. The other modes have no choice.
    - `sub_state_dim`: complex states per inner channel; in `"pointwise"`, inner channels per group.
    - `dt_min`, `dt_max`: the range in which Δ starts, uniform in its logarithm, one per inner
        channel; in `"pointwise"`, per group.
    - `discretization`: how the continuous system becomes a step.
    """

    mode: Literal["neck", "pointwise", "depthwise", "full"] = "neck"
    state_dim: int | None = None
    sub_state_dim: int = 8
    dt_min: float = 0.001
    dt_max: float = 0.1
    discretization: Discretization = "zoh"

    def __post_init__(self):
        require_choice(self, "mode", "discretization")
        require_positive(self, "sub_state_dim", "dt_min")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")
        if self.state_dim is not None:
            has_choice = self.mode in ("neck", "pointwise")
            require(has_choice, self, "state_dim", f"None, as mode={self.mode!r} sets it")
            require_positive(self, "state_dim")

    def build(self, in_features: int, key: PRNGKeyArray) -> "CentaurusSequenceMixer":
        return CentaurusSequenceMixer(in_features, self, key)


class CentaurusSequenceMixer(AbstractRecurrentMixer[ComplexPair]):
    """Diagonal state spaces between projections.

    The state is s, shape `(inner, sub_state_dim)`; in `"pointwise"` `(inner, 1)`, and in `"full"`
    `(features, features * sub_state_dim)`, output by input.
    """

    config: CentaurusSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    log_decay: Float[Array, "channels sub_state"]  # log(-Re A)
    frequency: Float[Array, "channels sub_state"]  # Im A
    log_step: Float[Array, " channels"]  # log Δ
    mix: Float[Array, "channels sub_state"] | None  # E
    in_proj: Float[Array, "..."]  # B
    out_proj: Float[Array, "..."]  # C

    def __init__(self, in_features: int, cfg: CentaurusSequenceMixerConfig, key: PRNGKeyArray):
        step_key, mix_key, in_key, out_key = split(key, 4)
        by_mode = {"depthwise": in_features, "full": in_features**2}
        shape = by_mode.get(cfg.mode, cfg.state_dim or in_features), cfg.sub_state_dim
        frequency = np.pi * np.arange(cfg.sub_state_dim) / cfg.sub_state_dim
        self.config = cfg
        self.in_features = in_features
        self.log_decay = constant(math.log(0.5), shape)
        self.frequency = constant(frequency, shape)
        self.log_step = uniform(step_key, shape[:1], math.log(cfg.dt_min), math.log(cfg.dt_max))
        self.mix = None if cfg.mode == "pointwise" else normal(mix_key, shape, math.sqrt(2))
        match cfg.mode:
            case "neck" | "pointwise":
                inner = shape[0] * (cfg.sub_state_dim if cfg.mode == "pointwise" else 1)
                self.in_proj = linear_weight(in_key, in_features, inner)
                self.out_proj = linear_weight(out_key, inner, in_features)
            case "depthwise":
                self.in_proj = self.out_proj = constant(1, (in_features,))
            case "full":
                pairs = (in_features, in_features)
                self.in_proj = normal(in_key, pairs)
                self.out_proj = normal(out_key, pairs, 1 / math.sqrt(in_features))

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
    def sub_state_dim(self) -> int:
        return self.config.sub_state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        if not is_convolution(context):
            return self.prefill(self.init_state(0, x.dtype), x, context=context)[1]
        x, context = enter(self, x, context)
        kernel = self.kernel(len(x), accumulation_dtype(x.dtype)).T
        if self.config.mode == "full":
            kernel = kernel.reshape(len(x), self.in_features, self.in_features).mT
            v = convolve(partial(long_conv_full, kernel=kernel), upcast(x), context)
        else:
            v = convolve(partial(long_conv, kernel=kernel), self._drive(x)[..., 0], context)
        return context.blank_padding(self._readout(v, x))

    def kernel(
        self, length: int, dtype: DTypeLike = jnp.float32
    ) -> Float[Array, "channels length"]:
        """K, each inner channel's response to an impulse. Its gradient computes it again.

        Of full connections, with B and C; output by input.
        """

        def respond(mixer: "CentaurusSequenceMixer") -> Float[Array, "channels length"]:
            states = 1 if mixer.mix is None else mixer.sub_state_dim
            system, weight = mixer._system(dtype, (-1, states))
            return impulse_response(system, mixer.config.discretization, weight, length)

        return jax.checkpoint(respond)(self)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> ComplexPair:
        zero = jnp.zeros(self._state_shape(), accumulation_dtype(dtype or jnp.float32))
        return ComplexPair(zero, zero)

    def prefill(
        self, state: ComplexPair, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Signal]:
        x, context = enter(self, x, context)
        drive = self._drive(x)
        system, weight = self._system(drive.dtype, self._state_shape())
        state, v = recurrence(
            system,
            self.config.discretization,
            weight,
            cast_like(state, drive),
            Positions(drive, context.timesteps, context.resets(), context.mask),
            context.axis_name,
        )
        return state, context.blank_padding(self._readout(v, x))

    def step(
        self, state: ComplexPair, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[ComplexPair, Frame]:
        x, context = enter_step(self, x, context)
        drive = self._drive(x)
        system, weight = self._system(drive.dtype, self._state_shape())
        decay, gain = discretize(system, self.config.discretization, context.timesteps)
        driven = jax.tree.map(lambda part: part * drive, gain)
        new = step_state(decay, driven, state, context)
        return new, context.blank_padding(self._readout(read_out(weight, new), x))

    @property
    def complexity(self) -> str:
        return "O(L log L · d + L · d² + L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time, (channels, states) = math.prod(spatial_dims), self.log_decay.shape
        if self.mix is None:
            channels, states = channels * states, 1
        kernel = 4 * time * states + 2 * time
        projections = 2 * time * (self.in_proj.size + self.out_proj.size)
        forward = channels * (long_conv_flops(time) + kernel) + projections
        return forward if inference else 3 * forward

    def _state_shape(self) -> tuple[int, int]:
        rows = {"pointwise": self.log_decay.size, "full": self.in_features}
        count = rows.get(self.config.mode, len(self.log_decay))
        return count, self.log_decay.size // count

    def _system(self, dtype: DTypeLike, shape: tuple[int, int]) -> tuple[Diagonal, ComplexPair]:
        """A and Δ, and what reads the states, in the given shape."""
        log_decay, frequency, log_step = (
            array.astype(dtype) for array in (self.log_decay, self.frequency, self.log_step)
        )
        weight = jnp.ones_like(frequency) if self.mix is None else self.mix.astype(dtype)
        if self.config.mode == "full":
            weight = weight * (self.in_proj * self.out_proj).reshape(-1, 1).astype(dtype)
        system = Diagonal(ComplexPair(-jnp.exp(log_decay), frequency), jnp.exp(log_step)[:, None])
        real = ComplexPair(weight / 2, jnp.zeros_like(weight))  # it is read as 2 Re
        reshape = lambda leaf: jnp.broadcast_to(leaf, frequency.shape).reshape(shape)
        return jax.tree.map(reshape, (system, real))

    def _drive(self, x: Float[Array, "*time features"]) -> Float[Array, "*time outer states"]:
        """u, in at least float32, as it broadcasts to the states; without B if that is `"full"`."""
        match self.config.mode:
            case "neck" | "pointwise":
                return upcast(linear(x, self.in_proj))[..., None]
            case "depthwise":
                return (upcast(x) * self.in_proj.astype(upcast(x).dtype))[..., None]
            case "full":
                return jnp.repeat(upcast(x), self.sub_state_dim, axis=-1)[..., None, :]

    def _readout(
        self, v: Float[Array, "*time inner"], like: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        match self.config.mode:
            case "neck" | "pointwise":
                return linear(v.astype(like.dtype), self.out_proj)
            case "depthwise":
                return (v * self.out_proj.astype(v.dtype)).astype(like.dtype)
            case "full":
                return v.astype(like.dtype)

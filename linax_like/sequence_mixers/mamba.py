"""Mamba, or S6 (Gu & Dao, 2023, https://arxiv.org/abs/2312.00752): a system that its input selects.

    (u, z) = W_in x                         u ← SiLU(short_conv(u))
    (δ, B, C) = W_x u                       Δ = softplus(W_Δ δ + b_Δ)
    h[t] = exp(Δ[t] A) ⊙ h[t-1] + Δ[t] u[t] B[t]ᵀ          (euler, and others)
    y[t] = W_out ((h[t] C[t] + D ⊙ u[t]) ⊙ SiLU(z[t]))

A complex A comes in conjugate pairs, of which one is kept: then 2 Re(h[t] C[t]). `bilinear` is the
trapezoid rule in `step` too.

Falcon Mamba (https://arxiv.org/abs/2410.05355) divides δ, B and C by their root mean squares.

With `context.timesteps` τ the decay has a step size of its own, and what an input weighs stays Δ:
either Δ_A[t] = τ[t] Δ[t], or, for events, Δ_A[t] = τ[t] softplus(b_A) as in STREAM (Schöne et al.,
2024, https://arxiv.org/abs/2411.12603).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split, step_size_bias, uniform
from ..norms import divide_by_rms
from ..ops.complex_pair import ComplexPair
from ..ops.discretize import Discretization
from ..ops.selective_scan import Parts, selective_scan, selective_step
from ..ops.short_conv import short_conv, short_conv_step
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
)


@dataclass(frozen=True)
class MambaSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A diagonal state space for every feature, whose B, C and Δ depend on the input.

    - `state_dim`: size of a feature's state, conjugates included.
    - `expand`: the state spaces work on `expand` times the width.
    - `short_width`: taps of the short convolution.
    - `dt_rank`: rank of the projection from u to Δ; by default a 16th of the width, rounded up.
    - `dt_min`, `dt_max`, `dt_floor`: the range in which softplus(b_Δ) starts, uniform in its
        logarithm, and the least that it may be.
    - `discretization`: how the continuous system becomes a step. The paper's is `"euler"`.
    - `eigenvalues`: A starts as -(n+1) if `"real"`, as -1/2 + iπn if `"complex"`.
    - `timestep_decay`: what `context.timesteps` multiply in the decay: Δ (`"scaled"`; timesteps of
        one change nothing), or a parameter (`"learned"`).
    - `short_bias`, `proj_bias`: whether the short convolution, and W_in and W_out, have biases.
    - `select_norm_eps`: divide δ, B and C by their root mean squares, to whose squares this is added;
        None leaves them as they are.
    """

    state_dim: int = 16
    expand: int = 2
    short_width: int = 4
    dt_rank: int | None = None
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    discretization: Discretization = "euler"
    eigenvalues: Literal["real", "complex"] = "real"
    timestep_decay: Literal["scaled", "learned"] = "scaled"
    short_bias: bool = True
    proj_bias: bool = False
    select_norm_eps: float | None = None

    def __post_init__(self):
        require_positive(self, "state_dim", "expand", "short_width", "dt_min", "dt_floor")
        for field in ("dt_rank", "select_norm_eps"):
            value = getattr(self, field)
            require(value is None or value > 0, self, field, "positive or None")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")
        require_choice(self, "discretization", "eigenvalues", "timestep_decay")
        even = self.eigenvalues == "real" or self.state_dim % 2 == 0
        require(even, self, "state_dim", "even: complex states are conjugate pairs")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MambaSequenceMixer":
        return MambaSequenceMixer(in_features, self, key)


class MambaState(NamedTuple):
    """Of the current document.

    - `short`: the last inputs of the short convolution, the newest last.
    - `recurrent`: h, shape `(inner, state)`.
    """

    short: Float[Array, "last inner"]
    recurrent: Parts


class MambaSequenceMixer(AbstractRecurrentMixer[MambaState]):
    """A selective state space between a short convolution and a gate."""

    config: MambaSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    in_proj: Float[Array, "both features"]  # W_in: u, z
    in_bias: Float[Array, " both"] | None
    short_weight: Float[Array, "width inner"]
    short_bias: Float[Array, " inner"] | None
    select_proj: Float[Array, "selected inner"]  # W_x: δ, B, C; of complex ones real, imaginary
    dt_proj: Float[Array, "inner rank"]  # W_Δ
    dt_bias: Float[Array, " inner"]  # b_Δ
    decay_dt_bias: Float[Array, " inner"] | None  # b_A
    log_decay: Float[Array, "inner state"]  # log(-Re A)
    frequency: Float[Array, "inner state"] | None  # Im A
    skip: Float[Array, " inner"]  # D
    out_proj: Float[Array, "features inner"]  # W_out
    out_bias: Float[Array, " features"] | None

    def __init__(self, in_features: int, cfg: MambaSequenceMixerConfig, key: PRNGKeyArray):
        in_key, short_key, select_key, dt_key, bias_key, decay_key, out_key = split(key, 7)
        inner, width = cfg.expand * in_features, cfg.short_width
        rank = cfg.dt_rank or -(-in_features // 16)
        decay, frequency = _initial_eigenvalues(cfg)
        dt_range = cfg.dt_min, cfg.dt_max, cfg.dt_floor
        self.config = cfg
        self.in_features = in_features
        self.in_proj = linear_weight(in_key, in_features, 2 * inner)
        self.in_bias = constant(0, (2 * inner,)) if cfg.proj_bias else None
        self.short_weight = normal(short_key, (width, inner), 1 / math.sqrt(width))
        self.short_bias = constant(0, (inner,)) if cfg.short_bias else None
        self.select_proj = linear_weight(select_key, inner, rank + 2 * cfg.state_dim)
        self.dt_proj = uniform(dt_key, (inner, rank), -(rank**-0.5), rank**-0.5)
        self.dt_bias = step_size_bias(bias_key, (inner,), *dt_range)
        self.decay_dt_bias = None
        if cfg.timestep_decay == "learned":
            self.decay_dt_bias = step_size_bias(decay_key, (inner,), *dt_range)
        self.log_decay = constant(np.tile(np.log(decay), (inner, 1)))
        self.frequency = None if frequency is None else constant(np.tile(frequency, (inner, 1)))
        self.skip = constant(1, (inner,))
        self.out_proj = linear_weight(out_key, inner, in_features)
        self.out_bias = constant(0, (in_features,)) if cfg.proj_bias else None

    @property
    def causal(self) -> bool:
        return True

    @property
    def uses(self) -> frozenset[str]:
        return frozenset({"timesteps"})

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"log_decay", "frequency", "dt_bias", "decay_dt_bias"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> MambaState:
        dtype = accumulation_dtype(dtype or jnp.float32)
        last = self.config.short_width - 1, len(self.skip)
        h = jnp.zeros(self.log_decay.shape, dtype)
        recurrent = h if self.frequency is None else ComplexPair(h, h)
        return MambaState(jnp.zeros(last, dtype), recurrent)

    def prefill(
        self, state: MambaState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[MambaState, Signal]:
        x, context = enter(self, x, context)
        resets, mask, axis_name = context.resets(), context.mask, context.axis_name
        u, gate = self._project(x)
        short, u = short_conv(
            u,
            self.short_weight,
            self.short_bias,
            state.short,
            resets=resets,
            mask=mask,
            axis_name=axis_name,
        )
        u = jax.nn.silu(u)
        dt, decay_dt, B, C = self._select(u, context.timesteps)
        recurrent, y = selective_scan(
            u,
            dt,
            self._eigenvalues(dt.dtype),
            B,
            C,
            state.recurrent,
            decay_dt=decay_dt,
            discretization=self.config.discretization,
            resets=resets,
            mask=mask,
            axis_name=axis_name,
        )
        return MambaState(short, recurrent), context.blank_padding(self._readout(y, u, gate))

    def step(
        self, state: MambaState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[MambaState, Frame]:
        x, context = enter_step(self, x, context)
        short, recurrent = context.forget(state)
        u, gate = self._project(x)
        short, u = short_conv_step(u, self.short_weight, self.short_bias, short)
        u = jax.nn.silu(u)
        dt, decay_dt, B, C = self._select(u, context.timesteps)
        A, method = self._eigenvalues(dt.dtype), self.config.discretization
        recurrent, y = selective_step(
            recurrent, u, dt, A, B, C, decay_dt=decay_dt, discretization=method
        )
        new = keep_at_padding(context, MambaState(short, recurrent), state)
        return new, context.blank_padding(self._readout(y, u, gate))

    @property
    def complexity(self) -> str:
        return "O(L · d² + L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        weights = (self.in_proj, self.short_weight, self.select_proj, self.dt_proj, self.out_proj)
        projections = 2 * sum(weight.size for weight in weights)
        recurrence = (6 if self.frequency is None else 24) * self.log_decay.size
        forward = math.prod(spatial_dims) * (projections + recurrence + 4 * len(self.skip))
        return forward if inference else 3 * forward

    def _project(self, x: Float[Array, "*time features"]) -> tuple[Array, Array]:
        """u, and the gate z."""
        u, gate = jnp.split(linear(x, self.in_proj, self.in_bias), 2, axis=-1)
        return u, gate

    def _select(
        self, u: Float[Array, "*time inner"], timesteps: Float[Array, "*time"] | None
    ) -> tuple[Array, Array | None, Parts, Parts]:
        """Δ, Δ_A if it is another, B and C."""
        rank, states = self.dt_proj.shape[1], self.config.state_dim
        selected = jnp.split(linear(u, self.select_proj), [rank, rank + states], axis=-1)
        if self.config.select_norm_eps is not None:
            selected = (divide_by_rms(z, self.config.select_norm_eps) for z in selected)
        low_rank, B, C = selected
        B, C = upcast(B), upcast(C)
        dt = upcast(linear(low_rank.astype(u.dtype), self.dt_proj))
        dt = jax.nn.softplus(dt + self.dt_bias.astype(dt.dtype))
        if self.frequency is not None:
            B, C = (ComplexPair(*jnp.split(z, 2, axis=-1)) for z in (B, C))
        if timesteps is None:
            return dt, None, B, C
        rate = dt
        if self.decay_dt_bias is not None:
            rate = jax.nn.softplus(self.decay_dt_bias.astype(dt.dtype))
        return dt, timesteps[..., None].astype(dt.dtype) * rate, B, C

    def _eigenvalues(self, dtype: DTypeLike) -> Parts:
        real = -jnp.exp(self.log_decay.astype(dtype))
        return real if self.frequency is None else ComplexPair(real, self.frequency.astype(dtype))

    def _readout(self, y: Array, u: Array, gate: Array) -> Float[Array, "*time features"]:
        y = y + self.skip.astype(y.dtype) * u
        gated = (y * jax.nn.silu(upcast(gate))).astype(u.dtype)
        return linear(gated, self.out_proj, self.out_bias)


def _initial_eigenvalues(cfg: MambaSequenceMixerConfig) -> tuple[np.ndarray, np.ndarray | None]:
    """-Re A and Im A."""
    if cfg.eigenvalues == "real":
        return np.arange(1.0, cfg.state_dim + 1), None
    n = np.arange(cfg.state_dim // 2)
    return np.full(n.shape, 0.5), np.pi * n

"""Mamba-2 (Dao & Gu, 2024, https://arxiv.org/abs/2405.21060): one selective decay per head.

    (z, xBC, δ) = W_in u        (x, B, C) = silu(short_conv(xBC))        Δ = softplus(δ + b_Δ)

    h[t] = exp(-exp(a) Δ[t]) h[t-1] + Δ[t] x[t] B[t]ᵀ                    for each head
    y[t] = W_out RMSNorm((h[t] C[t] + D x[t]) ⊙ silu(z[t]))

Heads of a group share B and C, and are normalised together. For samples at irregular times
`context.timesteps` scale Δ in the decay alone: the weight of an event stays Δ, whenever it comes.

Hugging Face's weights fit, but for the convolution's, which are transposed here. Its single steps
ignore the limits of Δ; here they hold in a step as well.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split, step_size_bias, uniform
from ..norms import divide_by_rms
from ..ops.short_conv import short_conv, short_conv_step
from ..ops.ssd import ssd, ssd_step
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
class Mamba2SequenceMixerConfig(AbstractSequenceMixerConfig):
    """A selective state space with one decay per head, computed as products of matrices.

    - `state_dim`: numbers that a head keeps of each of its features.
    - `expand`: width of all heads together, relative to the input's.
    - `head_dim`: features of a head; by default 64, or the largest smaller power of two that divides
        the expanded width.
    - `num_groups`: groups of heads, each with its own B, C and norm.
    - `short_width`: taps of the short convolution.
    - `dt_min`, `dt_max`: the range in which Δ starts, uniform in its logarithm, one per head.
    - `dt_floor`: the smallest Δ to start with.
    - `dt_limits`: Δ is clipped to this range; None leaves it as it is.
    - `norm_eps`: added to the mean square that the norm divides by.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    - `short_bias`, `proj_bias`: whether the short convolution, and W_in and W_out, have biases.
    """

    state_dim: int = 128
    expand: int = 2
    head_dim: int | None = None
    num_groups: int = 1
    short_width: int = 4
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_limits: tuple[float, float] | None = None
    norm_eps: float = 1e-5
    chunk: int = 64
    short_bias: bool = True
    proj_bias: bool = False

    def __post_init__(self):
        require_positive(self, "state_dim", "expand", "num_groups", "short_width", "chunk")
        require_positive(self, "dt_min", "dt_floor", "norm_eps")
        require(self.head_dim is None or self.head_dim > 0, self, "head_dim", "positive")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")
        if self.dt_limits is not None:
            low, high = self.dt_limits
            require(0 <= low < high, self, "dt_limits", "two numbers from 0 on, the smaller first")

    def build(self, in_features: int, key: PRNGKeyArray) -> "Mamba2SequenceMixer":
        return Mamba2SequenceMixer(in_features, self, key)


class Mamba2State(NamedTuple):
    """What the current document left.

    - `short`: the last inputs of the short convolution, the newest last.
    - `heads`: h.
    """

    short: Float[Array, "last channels"]
    heads: Float[Array, "heads head state"]


class Mamba2SequenceMixer(AbstractRecurrentMixer[Mamba2State]):
    """Selective state space with one decay per head."""

    config: Mamba2SequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    in_proj: Float[Array, "projections features"]  # W_in: z, x, B, C, δ
    in_bias: Float[Array, " projections"] | None
    short_weight: Float[Array, "width channels"]
    short_bias: Float[Array, " channels"] | None
    log_decay: Float[Array, " heads"]  # a
    dt_bias: Float[Array, " heads"]  # b_Δ
    skip: Float[Array, " heads"]  # D
    norm_weight: Float[Array, " inner"]
    out_proj: Float[Array, "features inner"]  # W_out
    out_bias: Float[Array, " features"] | None

    def __init__(self, in_features: int, cfg: Mamba2SequenceMixerConfig, key: PRNGKeyArray):
        in_key, short_key, decay_key, dt_key, out_key = split(key, 5)
        self.config = cfg
        self.in_features = in_features
        self.num_heads, self.head_dim = _head_sizes(in_features, cfg)
        inner = self.num_heads * self.head_dim
        channels, heads = inner + 2 * cfg.num_groups * cfg.state_dim, (self.num_heads,)
        projections = inner + channels + self.num_heads
        self.in_proj = linear_weight(in_key, in_features, projections)
        self.in_bias = constant(0, (projections,)) if cfg.proj_bias else None
        short_shape = (cfg.short_width, channels)
        self.short_weight = normal(short_key, short_shape, 1 / math.sqrt(cfg.short_width))
        self.short_bias = constant(0, (channels,)) if cfg.short_bias else None
        self.log_decay = jnp.log(uniform(decay_key, heads, 1.0, 16.0))
        self.dt_bias = step_size_bias(dt_key, heads, cfg.dt_min, cfg.dt_max, cfg.dt_floor)
        self.skip = constant(1, heads)
        self.norm_weight = constant(1, (inner,))
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
        return frozenset({"log_decay", "dt_bias"})

    @property
    def state_dim(self) -> int:
        return self.config.state_dim

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> Mamba2State:
        dtype = accumulation_dtype(dtype or jnp.float32)
        width, channels = self.short_weight.shape
        heads = (self.num_heads, self.head_dim, self.state_dim)
        return Mamba2State(jnp.zeros((width - 1, channels), dtype), jnp.zeros(heads, dtype))

    def prefill(
        self, state: Mamba2State, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[Mamba2State, Signal]:
        x, context = enter(self, x, context)
        rules = context.rules()
        gate, mixed, dt = self._project(x)
        weight, bias = self.short_weight, self.short_bias
        short, mixed = short_conv(mixed, weight, bias, state.short, **rules)
        inputs, b, c = self._heads(mixed)
        log_decay, drive = self._discretize(dt, inputs, context)
        heads, y = ssd(drive, log_decay, b, c, state.heads, chunk=self.config.chunk, **rules)
        return Mamba2State(short, heads), context.blank_padding(self._readout(y, inputs, gate))

    def step(
        self, state: Mamba2State, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[Mamba2State, Frame]:
        x, context = enter_step(self, x, context)
        short, heads = context.forget(state)
        gate, mixed, dt = self._project(x)
        short, mixed = short_conv_step(mixed, self.short_weight, self.short_bias, short)
        inputs, b, c = self._heads(mixed)
        log_decay, drive = self._discretize(dt, inputs, context)
        heads = heads.astype(jnp.promote_types(heads.dtype, x.dtype))
        heads, y = ssd_step(heads, drive, log_decay, b, c)
        new = keep_at_padding(context, Mamba2State(short, heads), state)
        return new, context.blank_padding(self._readout(y, inputs, gate))

    @property
    def complexity(self) -> str:
        return "O(L · d² + L · N · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time, cfg = math.prod(spatial_dims), self.config
        inner = self.num_heads * self.head_dim
        projections = 2 * (self.in_proj.size + self.out_proj.size + self.short_weight.size)
        within = 2 * min(cfg.chunk, time) * (cfg.num_groups * cfg.state_dim + inner)
        states = 4 * inner * cfg.state_dim
        forward = time * (projections + within + states + 8 * inner)
        return forward if inference else 3 * forward

    def _project(self, x: Float[Array, "*time features"]) -> tuple[Array, Array, Array]:
        """z, xBC and δ."""
        inner = self.num_heads * self.head_dim
        ends = (inner, inner + self.short_weight.shape[1])
        gate, mixed, dt = jnp.split(linear(x, self.in_proj, self.in_bias), ends, axis=-1)
        return gate, mixed, dt

    def _heads(self, mixed: Float[Array, "*time channels"]) -> tuple[Array, Array, Array]:
        """x by head, B and C by group."""
        inner, cfg = self.num_heads * self.head_dim, self.config
        x, b, c = jnp.split(
            jax.nn.silu(mixed), (inner, inner + cfg.num_groups * cfg.state_dim), axis=-1
        )
        b, c = (z.reshape(*z.shape[:-1], cfg.num_groups, cfg.state_dim) for z in (b, c))
        return x.reshape(*x.shape[:-1], self.num_heads, self.head_dim), b, c

    def _discretize(
        self,
        dt: Float[Array, "*time heads"],
        x: Float[Array, "*time heads head"],
        context: SequenceContext,
    ) -> tuple[Float[Array, "*time heads"], Float[Array, "*time heads head"]]:
        """The logarithm of the decay, and Δ x."""
        dt = upcast(dt)
        dt = jax.nn.softplus(dt + self.dt_bias.astype(dt.dtype))
        if self.config.dt_limits is not None:
            dt = jnp.clip(dt, *self.config.dt_limits)
        log_decay = -jnp.exp(self.log_decay.astype(dt.dtype)) * dt
        if context.timesteps is not None:
            log_decay = context.timesteps[..., None].astype(dt.dtype) * log_decay
        return log_decay, (dt[..., None] * x).astype(x.dtype)

    def _readout(
        self,
        y: Float[Array, "*time heads head"],
        x: Float[Array, "*time heads head"],
        gate: Float[Array, "*time inner"],
    ) -> Float[Array, "*time features"]:
        y = y + self.skip.astype(x.dtype)[:, None] * x
        y = y.reshape(gate.shape) * jax.nn.silu(gate)
        groups = self.config.num_groups, y.shape[-1] // self.config.num_groups
        groups = y.reshape(*y.shape[:-1], *groups)
        normal = divide_by_rms(groups, self.config.norm_eps).reshape(y.shape)
        normal = normal * self.norm_weight.astype(normal.dtype)
        return linear(normal.astype(x.dtype), self.out_proj, self.out_bias)


def _head_sizes(in_features: int, cfg: Mamba2SequenceMixerConfig) -> tuple[int, int]:
    """The number of heads, and the size of one."""
    inner = cfg.expand * in_features
    head = math.gcd(inner, 64) if cfg.head_dim is None else cfg.head_dim
    law = f"a divisor of the expanded width {inner} (expand times in_features={in_features})"
    require(inner % head == 0, cfg, "head_dim", law)
    heads = inner // head
    law = f"a divisor of the {heads} heads that width {in_features} has: try another head_dim"
    require(heads % cfg.num_groups == 0, cfg, "num_groups", law)
    return heads, head

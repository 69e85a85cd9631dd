"""Griffin's recurrent block with the RG-LRU (De et al., 2024, https://arxiv.org/abs/2402.19427).

    u = short_conv(W_x x + b_x)
    r[t] = σ(W_r u[t] + b_r)        i[t] = σ(W_i u[t] + b_i)        by blocks of features
    log a[t] = -8 r[t] softplus(Λ)
    h[t] = a[t] ⊙ h[t-1] + √(1 - a[t]²) ⊙ i[t] ⊙ u[t]
    y[t] = W_out (h[t] ⊙ gelu(W_y x[t] + b_y)) + b_out

Where a document begins a = 0, and the root is replaced by 1. The slope of the root is bounded. With
complex states u = u₀ + i u₁ of the two halves of u, log a has the imaginary part θ r[t], the root
is of 1 - |a|², and h is the real parts followed by the imaginary ones.

Hugging Face's weights fit, but for those of the gates, of which each block is transposed here, and
those of the convolution.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split, uniform
from ..ops.complex_pair import add, ComplexPair, exp, multiply, scale
from ..ops.short_conv import short_conv, short_conv_step
from ..precision import accumulation_dtype, cast_like, linear, upcast
from ..types import Frame, Signal
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    keep_at_padding,
)
from .recurrence import scan_states


States = Any  # an array, or a `ComplexPair` of two

_SHARPNESS = 8.0  # c of the paper
_LARGEST_SLOPE = 1000.0


@dataclass(frozen=True)
class RGLRUSequenceMixerConfig(AbstractSequenceMixerConfig):
    """A gated diagonal recurrence between a short convolution and a gate.

    - `lru_width`: features of the recurrence; by default as many as the input has.
    - `num_heads`: blocks of features that gates are computed from; by default such that a block has
        256 features, or as many as the largest smaller power of two that divides the width.
    - `states`: real, or complex and half as many.
    - `short_width`: taps of the short convolution.
    - `min_radius`, `max_radius`: the ring in which exp(-softplus(Λ)) starts, uniform by area.
    - `max_phase`: the largest initial angle θ of complex states, in radians.
    """

    lru_width: int | None = None
    num_heads: int | None = None
    states: Literal["real", "complex"] = "real"
    short_width: int = 4
    min_radius: float = 0.9
    max_radius: float = 0.999
    max_phase: float = 0.1 * math.pi

    def __post_init__(self):
        optional = (name for name in ("lru_width", "num_heads") if getattr(self, name) is not None)
        require_positive(self, "short_width", "min_radius", "max_phase", *optional)
        law = "above min_radius and below 1"
        require(self.min_radius < self.max_radius < 1, self, "max_radius", law)
        require_choice(self, "states")

    def build(self, in_features: int, key: PRNGKeyArray) -> "RGLRUSequenceMixer":
        return RGLRUSequenceMixer(in_features, self, key)


class RGLRUState(NamedTuple):
    """What the current document left.

    - `short`: the last inputs of the short convolution, the newest last.
    - `recurrent`: h.
    - `begun`: whether there was a position of the document.
    """

    short: Float[Array, "last width"]
    recurrent: Float[Array, " width"]
    begun: Bool[Array, ""]


class RGLRUSequenceMixer(AbstractRecurrentMixer[RGLRUState]):
    """Real-gated linear recurrent unit, with the convolution before it and the gate after it."""

    config: RGLRUSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    lru_width: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    in_proj: Float[Array, "width features"]  # W_x
    in_bias: Float[Array, " width"]
    gate_proj: Float[Array, "width features"]  # W_y
    gate_bias: Float[Array, " width"]
    short_weight: Float[Array, "taps width"]
    short_bias: Float[Array, " width"]
    decay_gate_weight: Float[Array, "heads out in"]  # W_r
    decay_gate_bias: Float[Array, "heads out"]
    input_gate_weight: Float[Array, "heads out in"]  # W_i
    input_gate_bias: Float[Array, "heads out"]
    decay_logit: Float[Array, " state"]  # Λ
    phase: Float[Array, " state"] | None  # θ
    out_proj: Float[Array, "features width"]  # W_out
    out_bias: Float[Array, " features"]

    def __init__(self, in_features: int, cfg: RGLRUSequenceMixerConfig, key: PRNGKeyArray):
        in_key, gate_key, short_key, r_key, i_key, radius_key, phase_key, out_key = split(key, 8)
        width, heads = _sizes(in_features, cfg)
        size = width // heads
        gate_shape = (heads, size if cfg.states == "real" else size // 2, size)
        self.config = cfg
        self.in_features = in_features
        self.lru_width, self.num_heads = width, heads
        self.in_proj = linear_weight(in_key, in_features, width)
        self.in_bias = constant(0, (width,))
        self.gate_proj = linear_weight(gate_key, in_features, width)
        self.gate_bias = constant(0, (width,))
        self.short_weight = normal(
            short_key, (cfg.short_width, width), 1 / math.sqrt(cfg.short_width)
        )
        self.short_bias = constant(0, (width,))
        self.decay_gate_weight = normal(r_key, gate_shape, 1 / math.sqrt(size))
        self.decay_gate_bias = constant(0, gate_shape[:2])
        self.input_gate_weight = normal(i_key, gate_shape, 1 / math.sqrt(size))
        self.input_gate_bias = constant(0, gate_shape[:2])
        states = (heads * gate_shape[1],)
        squared_radius = uniform(radius_key, states, cfg.min_radius**2, cfg.max_radius**2)
        self.decay_logit = _decay_logit(squared_radius)
        self.phase = None
        if cfg.states == "complex":
            self.phase = uniform(phase_key, states, 0.0, cfg.max_phase)
        self.out_proj = linear_weight(out_key, width, in_features)
        self.out_bias = constant(0, (in_features,))

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"decay_logit", "phase", "decay_gate_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> RGLRUState:
        dtype = accumulation_dtype(dtype or jnp.float32)
        short = jnp.zeros((self.config.short_width - 1, self.lru_width), dtype)
        return RGLRUState(short, jnp.zeros((self.lru_width,), dtype), jnp.zeros((), bool))

    def prefill(
        self, state: RGLRUState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[RGLRUState, Signal]:
        x, context = enter(self, x, context)
        if len(x) == 0:
            return state, x
        rules = context.rules()
        weight, bias = self.short_weight, self.short_bias
        short, u = short_conv(self._project(x), weight, bias, state.short, **rules)
        earlier = context.replace(positions=None).positions_from(
            state.begun.astype(jnp.int32), len(x)
        )
        decay, drive = self._coefficients(u, earlier == 0)
        last, states = scan_states(decay, drive, self._split(state.recurrent), context)
        begun = state.begun | _any_real(context)
        y = context.blank_padding(self._readout(self._join(states), x))
        return RGLRUState(short, self._join(last), begun), y

    def step(
        self, state: RGLRUState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[RGLRUState, Frame]:
        x, context = enter_step(self, x, context)
        short, recurrent, begun = context.forget(state)
        short, u = short_conv_step(self._project(x), self.short_weight, self.short_bias, short)
        decay, drive = self._coefficients(u, ~begun)
        before = cast_like(self._split(recurrent), drive)
        h = add(multiply(decay, before), drive)
        new = RGLRUState(short, self._join(h), jnp.ones_like(begun))
        y = context.blank_padding(self._readout(new.recurrent, x))
        return keep_at_padding(context, new, state), y

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        weights = (self.in_proj, self.gate_proj, self.out_proj, self.short_weight)
        gates = (self.decay_gate_weight, self.input_gate_weight)
        recurrence = 3 * self.lru_width if self.phase is None else 5 * self.lru_width
        work = sum(2 * weight.size for weight in weights + gates) + recurrence + 2 * self.lru_width
        forward = math.prod(spatial_dims) * work
        return forward if inference else 3 * forward

    def _project(self, x: Float[Array, "*time features"]) -> Float[Array, "*time width"]:
        return linear(x, self.in_proj, self.in_bias)

    def _coefficients(
        self, u: Float[Array, "*time width"], begins: Bool[Array, "*time"]
    ) -> tuple[States, States]:
        """The decay, and what drives the states."""
        recurrence_gate = self._gate(u, self.decay_gate_weight, self.decay_gate_bias)
        input_gate = self._gate(u, self.input_gate_weight, self.input_gate_bias)
        dtype, begins = recurrence_gate.dtype, begins[..., None]
        rate = _SHARPNESS * jax.nn.softplus(self.decay_logit.astype(dtype))
        log_radius = -recurrence_gate * rate
        gain = bounded_sqrt(-jnp.expm1(2 * log_radius))
        gain = input_gate * jnp.where(begins, 1.0, gain)
        radius = jnp.where(begins, 0.0, jnp.exp(log_radius))
        if self.phase is None:
            return radius, gain * upcast(u)
        drive = self._split(upcast(u))
        turn = exp(ComplexPair(jnp.zeros_like(radius), recurrence_gate * self.phase.astype(dtype)))
        return scale(turn, radius), scale(drive, gain)

    def _gate(
        self,
        u: Float[Array, "*time width"],
        weight: Float[Array, "heads out in"],
        bias: Float[Array, "heads out"],
    ) -> Float[Array, "*time state"]:
        """A sigmoid of a projection by blocks, in at least float32."""
        blocks = u.reshape(*u.shape[:-1], self.num_heads, u.shape[-1] // self.num_heads)
        z = upcast(jnp.einsum("...hi,hoi->...ho", blocks, weight.astype(u.dtype)))
        z = jax.nn.sigmoid(z + bias.astype(z.dtype))
        return z.reshape(*u.shape[:-1], bias.size)

    def _split(self, h: Float[Array, "*time width"]) -> States:
        """Numbers side by side, as states."""
        return h if self.phase is None else ComplexPair(*jnp.split(h, 2, axis=-1))

    def _join(self, h: States) -> Float[Array, "*time width"]:
        """The inverse of `_split`."""
        return jnp.concatenate(h, axis=-1) if isinstance(h, ComplexPair) else h

    def _readout(
        self, h: Float[Array, "*time width"], x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        gate = jax.nn.gelu(linear(x, self.gate_proj, self.gate_bias))
        return linear(h.astype(x.dtype) * gate, self.out_proj, self.out_bias)


@jax.custom_jvp
def bounded_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The root, whose slope is at most 1000: at 0 it is not infinite."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_slope(primals, tangents):
    (x,), (dx,) = primals, tangents
    smallest = 1 / (2 * _LARGEST_SLOPE) ** 2
    return jnp.sqrt(x), dx / (2 * jnp.sqrt(jnp.maximum(x, smallest)))


def _any_real(context: SequenceContext) -> Bool[Array, ""]:
    """Whether any position, on any device, is not padding."""
    if context.mask is None:
        return jnp.bool_(True)
    real = context.mask.any()
    return real if context.axis_name is None else jax.lax.all_gather(real, context.axis_name).any()


def _sizes(in_features: int, cfg: RGLRUSequenceMixerConfig) -> tuple[int, int]:
    """The width of the recurrence, and the number of its blocks."""
    width = in_features if cfg.lru_width is None else cfg.lru_width
    heads = width // math.gcd(width, 256) if cfg.num_heads is None else cfg.num_heads
    require(width % heads == 0, cfg, "num_heads", f"a divisor of the recurrence's width {width}")
    law = f"'real' where blocks have an odd number of features: here {width // heads}"
    require(cfg.states == "real" or width // heads % 2 == 0, cfg, "states", law)
    return width, heads


@jax.jit
def _decay_logit(squared_radius: Array) -> Array:
    """Λ, for exp(-softplus(Λ)) to be the radius."""
    return jnp.log(jnp.expm1(-0.5 * jnp.log(squared_radius)))

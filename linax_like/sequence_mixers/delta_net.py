"""DeltaNet (Yang et al., 2024, https://arxiv.org/abs/2406.06484): a memory that corrects itself.

    (q, k, v, b, g) = W_in x         (q, k, v) = silu(short_conv(q, k, v))       q, k of norm 1
    S[t] = S[t-1] + β[t] k[t] (v[t] - S[t-1]ᵀ k[t])ᵀ       β = σ(b)              for each head
    y[t] = W_out (RMSNorm(S[t]ᵀ q[t] / √d) ⊙ silu(g))

A step multiplies the memory by I - β k kᵀ. With β up to 2 that can reflect it, and the state can
count: eigenvalues from -1 to 1 instead of 0 to 1 (https://arxiv.org/abs/2411.12537).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
from ..norms import divide_by_norm
from ..ops.delta_rule import delta_rule, delta_rule_step
from ..ops.short_conv import short_conv, short_conv_step
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig, enter, keep_at_padding
from .heads import head_sizes, join_heads, norm_of_heads, require_width, split_heads


@dataclass(frozen=True)
class DeltaNetSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Linear attention with the delta rule.

    - `num_heads`: heads of queries and keys; by default the width divided by the head size.
    - `head_dim`: size of a query or key; by default the width divided by `num_heads`, and without
        that 64 or the largest smaller power of two that divides the width.
    - `num_value_heads`: heads of values, of which as many share each query and key; by default one.
    - `value_head_dim`: size of a value; by default `head_dim`.
    - `negative_eigenvalues`: β up to 2 instead of 1, which tracking a state needs.
    - `activation`: of queries, keys and values, after the short convolution.
    - `short_width`: taps of the short convolution; None leaves it out.
    - `output_norm`: RMSNorm of each head, or nothing.
    - `output_gate`: multiply the output by a gate, as large as the values.
    - `norm_eps`: added to the mean square, or the squared norm of a key, that is divided by.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    num_value_heads: int | None = None
    value_head_dim: int | None = None
    negative_eigenvalues: bool = False
    activation: Literal["silu", "none"] = "silu"
    short_width: int | None = 4
    output_norm: Literal["rms", "none"] = "rms"
    output_gate: bool = False
    norm_eps: float = 1e-6
    chunk: int = 64

    def __post_init__(self):
        optional = ("num_heads", "head_dim", "num_value_heads", "value_head_dim", "short_width")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        require_positive(self, "norm_eps", "chunk")
        require_choice(self, "activation", "output_norm")

    def build(self, in_features: int, key: PRNGKeyArray) -> "DeltaNetSequenceMixer":
        return DeltaNetSequenceMixer(in_features, self, key)


class DeltaNetState(NamedTuple):
    """What the current document left.

    - `short`: the last inputs of the short convolution, the newest last.
    - `memory`: S.
    """

    short: Float[Array, "last channels"]
    memory: Float[Array, "heads key value"]


class DeltaNetSequenceMixer(AbstractRecurrentMixer[DeltaNetState]):
    """Linear attention with the delta rule."""

    config: DeltaNetSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    num_value_heads: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qkv_proj: Float[Array, "channels features"]
    beta_proj: Float[Array, "heads features"]
    gate_proj: Float[Array, "values features"] | None
    short_weight: Float[Array, "width channels"] | None
    norm_weight: Float[Array, " value"] | None
    out_proj: Float[Array, "features values"]

    def __init__(self, in_features: int, cfg: DeltaNetSequenceMixerConfig, key: PRNGKeyArray):
        qkv_key, beta_key, gate_key, short_key, out_key = split(key, 5)
        self.config = cfg
        self.in_features = in_features
        sizes = head_sizes(in_features, cfg, cfg.num_heads, cfg.head_dim)
        self.num_heads, self.head_dim = sizes
        self.num_value_heads = cfg.num_value_heads or self.num_heads
        self.value_head_dim = cfg.value_head_dim or self.head_dim
        law = f"`num_value_heads` to be a multiple of its {self.num_heads} heads"
        require_width(self.num_value_heads % self.num_heads == 0, cfg, in_features, law)
        keys, values = self.num_heads * self.head_dim, self.num_value_heads * self.value_head_dim
        channels = 2 * keys + values
        self.qkv_proj = linear_weight(qkv_key, in_features, channels)
        self.beta_proj = linear_weight(beta_key, in_features, self.num_value_heads)
        self.gate_proj = self.short_weight = self.norm_weight = None
        if cfg.output_gate:
            self.gate_proj = linear_weight(gate_key, in_features, values)
        if cfg.short_width is not None:
            shape = (cfg.short_width, channels)
            self.short_weight = normal(short_key, shape, 1 / math.sqrt(cfg.short_width))
        if cfg.output_norm == "rms":
            self.norm_weight = constant(1, (self.value_head_dim,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> DeltaNetState:
        dtype = accumulation_dtype(dtype or jnp.float32)
        short = ((self.config.short_width or 1) - 1, self.qkv_proj.shape[0])
        memory = (self.num_value_heads, self.head_dim, self.value_head_dim)
        return DeltaNetState(jnp.zeros(short, dtype), jnp.zeros(memory, dtype))

    def prefill(
        self, state: DeltaNetState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[DeltaNetState, Signal]:
        x, context = enter(self, x, context)
        rules = context.rules()

        def remember(memory, q, k, v, beta):
            chunk = self.config.chunk
            return delta_rule(q, k, v, beta, s0=memory, chunk=chunk, **rules)

        state, y = self._advance(state, x, partial(short_conv, **rules), remember)
        return state, context.blank_padding(y)

    def step(
        self, state: DeltaNetState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[DeltaNetState, Frame]:
        x, context = enter(self, x, context)
        new, y = self._advance(context.forget(state), x, short_conv_step, delta_rule_step)
        return keep_at_padding(context, new, state), context.blank_padding(y)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time = math.prod(spatial_dims)
        weights = (
            self.qkv_proj,
            self.beta_proj,
            self.gate_proj,
            self.short_weight,
            self.out_proj,
        )
        projections = sum(2 * weight.size for weight in weights if weight is not None)
        key, value = self.head_dim, self.value_head_dim
        recurrence = delta_rule_flops(min(self.config.chunk, max(time, 1)), key, value)
        forward = time * (projections + self.num_value_heads * recurrence)
        return forward if inference else 3 * forward

    def _advance(
        self,
        state: DeltaNetState,
        x: Float[Array, "*time features"],
        convolve: Callable,
        remember: Callable,
    ) -> tuple[DeltaNetState, Float[Array, "*time features"]]:
        """One position or many, by the ops given for that."""
        short, mixed = state.short, linear(x, self.qkv_proj)
        if self.short_weight is not None:
            short, mixed = convolve(mixed, self.short_weight, None, short)
        beta = jax.nn.sigmoid(upcast(linear(x, self.beta_proj)))
        if self.config.negative_eigenvalues:
            beta = 2 * beta
        memory = state.memory.astype(beta.dtype)
        memory, y = remember(memory, *self._heads(mixed), beta)
        return DeltaNetState(short, memory), self._readout(y, x)

    def _heads(self, mixed: Float[Array, "*time channels"]) -> tuple[Array, Array, Array]:
        """q, scaled, k and v by head."""
        keys = self.num_heads * self.head_dim
        if self.config.activation == "silu":
            mixed = jax.nn.silu(mixed)
        q, k, v = jnp.split(mixed, (keys, 2 * keys), axis=-1)
        q, k = (
            divide_by_norm(split_heads(z, self.num_heads), self.config.norm_eps) for z in (q, k)
        )
        q = q / math.sqrt(self.head_dim)
        return q.astype(v.dtype), k.astype(v.dtype), split_heads(v, self.num_value_heads)

    def _readout(
        self, y: Float[Array, "*time heads value"], x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        if self.norm_weight is None:
            y = join_heads(y)
        else:
            y = norm_of_heads(y, self.norm_weight, self.config.norm_eps)
        if self.gate_proj is not None:
            y = y * jax.nn.silu(linear(x, self.gate_proj))
        return linear(y.astype(x.dtype), self.out_proj)


def delta_rule_flops(chunk: int, key: int, value: int) -> int:
    """Of one head at one position."""
    return 2 * chunk * (2 * key + 2 * value + chunk) + 6 * key * value

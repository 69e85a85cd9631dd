"""RWKV-7 (Peng et al., 2025, https://arxiv.org/abs/2503.14456): a memory edited at learned rates.

    x_r, x_w, x_k, x_v, x_a, x_g = x[t] + μ ⊙ (x[t-1] - x[t])              a μ for each
    (r, k, v) = (W_r x_r, W_k x_k, W_v x_v)            log w = -e^-½ σ(w₀ + W₂ tanh(W₁ x_w))
    a = σ(a₀ + A₂ A₁ x_a)      g = G₂ σ(G₁ x_g)        κ = ξ ⊙ k of norm 1     k̃ = k ⊙ (1 + α ⊙ (a - 1))
    S[t] = (diag(w) - (a ⊙ κ) κᵀ) S[t-1] + k̃ vᵀ                             for each head
    y[t] = W_out (g ⊙ (GroupNorm(S[t]ᵀ r) + (r · (ρ ⊙ k̃)) v))

What the memory holds under κ is taken away at the rate a of each channel, the in-context learning
rate. This is the first layer of the published model: later ones mix the first layer's v into theirs,
which a mixer by itself cannot see. Initial values are the first layer's, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split
from ..norms import standardize
from ..ops.generalized_delta_rule import generalized_delta_rule, generalized_delta_rule_step
from ..precision import accumulation_dtype, linear, upcast
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig
from .heads import head_sizes, join_heads, split_heads
from .memory import (
    delta_rule_flops,
    empty_memory,
    memory_flops,
    MemoryState,
    prefill_memory,
    step_memory,
    unit,
)


# How μ of r, w, k, v, a and g starts: 1 - (channel / channels) ** power.
SHIFT_POWERS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)


@dataclass(frozen=True)
class RWKV7SequenceMixerConfig(AbstractSequenceMixerConfig):
    """The time mixing of RWKV-7.

    - `num_heads`: by default the width divided by the head size.
    - `head_dim`: by default the width divided by `num_heads`, and without that 64 or the largest
        smaller power of two that divides the width.
    - `decay_rank`, `rate_rank`, `gate_rank`: of the projections behind w, a and g; by default the
        published 2.5, 2.5 and 5 times the root of the width, in multiples of 32, at most the width.
    - `norm_eps`: added to the variance of a head, by default the published 1e-5 for each of 64 channels.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_heads: int | None = None
    head_dim: int | None = None
    decay_rank: int | None = None
    rate_rank: int | None = None
    gate_rank: int | None = None
    norm_eps: float = 64e-5
    chunk: int = 32

    def __post_init__(self):
        optional = ("num_heads", "head_dim", "decay_rank", "rate_rank", "gate_rank")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        require_positive(self, "norm_eps", "chunk")

    def build(self, in_features: int, key: PRNGKeyArray) -> "RWKV7SequenceMixer":
        return RWKV7SequenceMixer(in_features, self, key)


class RWKV7SequenceMixer(AbstractRecurrentMixer[MemoryState]):
    """The time mixing of RWKV-7. The short convolution is the token shift: it has two taps."""

    config: RWKV7SequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    shift_mix: Float[Array, "6 features"]  # μ
    query_proj: Float[Array, "channels features"]  # W_r
    key_proj: Float[Array, "channels features"]  # W_k
    value_proj: Float[Array, "channels features"]  # W_v
    decay_down_proj: Float[Array, "decay_rank features"]  # W₁
    decay_up_proj: Float[Array, "channels decay_rank"]  # W₂
    decay_bias: Float[Array, " channels"]  # w₀
    rate_down_proj: Float[Array, "rate_rank features"]  # A₁
    rate_up_proj: Float[Array, "channels rate_rank"]  # A₂
    rate_bias: Float[Array, " channels"]  # a₀
    gate_down_proj: Float[Array, "gate_rank features"]  # G₁
    gate_up_proj: Float[Array, "channels gate_rank"]  # G₂
    removal_scale: Float[Array, " channels"]  # ξ
    rate_scale: Float[Array, " channels"]  # α
    bonus: Float[Array, "heads head"]  # ρ
    norm_weight: Float[Array, " channels"]
    norm_bias: Float[Array, " channels"]
    out_proj: Float[Array, "features channels"]  # W_out

    def __init__(self, in_features: int, cfg: RWKV7SequenceMixerConfig, key: PRNGKeyArray):
        r_key, k_key, v_key, out_key, *low_rank_keys = split(key, 10)
        self.config = cfg
        self.in_features = in_features
        self.num_heads, self.head_dim = head_sizes(in_features, cfg, cfg.num_heads, cfg.head_dim)
        channels = self.num_heads * self.head_dim
        place = np.arange(in_features) / in_features
        self.shift_mix = constant(np.stack([1 - place**power for power in SHIFT_POWERS]))
        self.query_proj = linear_weight(r_key, in_features, channels)
        self.key_proj = normal(k_key, (channels, in_features), 0.1 / math.sqrt(in_features))
        self.value_proj = linear_weight(v_key, in_features, channels)
        self.out_proj = linear_weight(out_key, channels, in_features)
        self._init_low_rank(low_rank_keys)
        zigzag = np.linspace(-1, 1, self.head_dim)
        zigzag = np.tile(zigzag * np.abs(zigzag), self.num_heads)
        ramp = np.linspace(0, 1, channels)
        self.decay_bias = constant(6 * ramp - 5.5 + 2.5 * zigzag)
        self.rate_bias = constant(0.4 * (ramp - 0.5) - 0.19 + 0.3 * zigzag)
        self.removal_scale = constant(0.71 - 0.1 * (ramp - 0.5))
        self.rate_scale = constant(1.02, (channels,))
        self.bonus = constant(-0.04, (self.num_heads, self.head_dim))
        self.norm_weight = constant(1, (channels,))
        self.norm_bias = constant(0, (channels,))

    def _init_low_rank(self, keys: list[PRNGKeyArray]) -> None:
        """Small second factors, so that the biases w₀ and a₀ lead at first; the gate has no bias."""
        cfg, features = self.config, self.in_features
        channels = self.num_heads * self.head_dim
        decay = cfg.decay_rank or _rank(2.5, features)
        rate = cfg.rate_rank or _rank(2.5, features)
        gate = cfg.gate_rank or _rank(5.0, features)
        self.decay_down_proj = linear_weight(keys[0], features, decay)
        self.decay_up_proj = normal(keys[1], (channels, decay), 0.1 / math.sqrt(decay))
        self.rate_down_proj = linear_weight(keys[2], features, rate)
        self.rate_up_proj = normal(keys[3], (channels, rate), 0.1 / math.sqrt(rate))
        self.gate_down_proj = linear_weight(keys[4], features, gate)
        self.gate_up_proj = linear_weight(keys[5], gate, channels)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"decay_bias", "rate_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> MemoryState:
        memory = (self.num_heads, self.head_dim, self.head_dim)
        return empty_memory((1, self.in_features), memory, dtype)

    def prefill(
        self, state: MemoryState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Signal]:
        recurrence = partial(generalized_delta_rule, chunk=self.config.chunk)
        return prefill_memory(self, self._advance, recurrence, state, x, context)

    def step(
        self, state: MemoryState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Frame]:
        return step_memory(self, self._advance, generalized_delta_rule_step, state, x, context)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time, sizes = math.prod(spatial_dims), (self.num_heads, self.head_dim, self.head_dim)
        recurrence = delta_rule_flops(self.config.chunk, time, *sizes)
        return memory_flops(self, time, recurrence, inference)

    def _advance(
        self,
        state: MemoryState,
        x: Float[Array, "*time features"],
        convolve: Callable,
        remember: Callable,
    ) -> tuple[MemoryState, Float[Array, "*time features"]]:
        """One position or many, by the ops given for that."""
        mix = self.shift_mix.astype(accumulation_dtype(x.dtype))
        taps = jnp.stack([mix, 1 - mix], axis=1)
        shift = jax.vmap(lambda taps: convolve(x, taps, None, state.short), out_axes=(None, 0))
        short, (for_r, for_w, for_k, for_v, for_a, for_g) = shift(taps)
        decay = linear(jnp.tanh(linear(for_w, self.decay_down_proj)), self.decay_up_proj)
        decay = -math.exp(-0.5) * _sigmoid(decay, self.decay_bias)
        rate = linear(linear(for_a, self.rate_down_proj), self.rate_up_proj)
        rate = _sigmoid(rate, self.rate_bias)
        r, v = linear(for_r, self.query_proj), linear(for_v, self.value_proj)
        removed, k = self._keys(linear(for_k, self.key_proj), rate)
        r, k, v, rate, decay = (split_heads(z, self.num_heads) for z in (r, k, v, rate, decay))
        inputs = (z.astype(x.dtype) for z in (r, k, v, -removed, removed * rate))
        memory, y = remember(state.memory, *inputs, decay)
        gate = linear(jax.nn.sigmoid(linear(for_g, self.gate_down_proj)), self.gate_up_proj)
        y = self._readout(y, r, k, v) * gate
        return MemoryState(short, memory), linear(y.astype(x.dtype), self.out_proj)

    def _keys(
        self, k: Float[Array, "*time channels"], rate: Float[Array, "*time channels"]
    ) -> tuple[Float[Array, "*time heads head"], Float[Array, "*time channels"]]:
        """κ by head, and k̃; in at least float32."""
        k = upcast(k)
        removed = split_heads(k * self.removal_scale.astype(k.dtype), self.num_heads)
        return unit(removed), k * (1 + self.rate_scale.astype(k.dtype) * (rate - 1))

    def _readout(
        self,
        y: Float[Array, "*time heads head"],
        r: Float[Array, "*time heads head"],
        k: Float[Array, "*time heads head"],
        v: Float[Array, "*time heads head"],
    ) -> Float[Array, "*time channels"]:
        """The heads' norm, and the present value as far as r asks for it."""
        normal = join_heads(standardize(y, self.config.norm_eps))
        normal = normal * self.norm_weight.astype(normal.dtype)
        normal = normal + self.norm_bias.astype(normal.dtype)
        asked = jnp.sum(r * k * self.bonus.astype(k.dtype), axis=-1, keepdims=True)
        return normal + join_heads(asked * v)


def _rank(factor: float, features: int) -> int:
    return min(features, max(32, 32 * round(factor * math.sqrt(features) / 32)))


def _sigmoid(
    logits: Float[Array, "*shape"], bias: Float[Array, " channels"]
) -> Float[Array, "*shape"]:
    """σ(logits + bias), in at least float32."""
    wide = upcast(logits)
    return jax.nn.sigmoid(wide + bias.astype(wide.dtype))

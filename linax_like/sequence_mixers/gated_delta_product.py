"""Gated DeltaProduct (Siems et al., 2025, https://arxiv.org/abs/2502.10297): n corrections a position.

    (q, k₁, v₁, b₁, …, kₙ, vₙ, bₙ, a, g) = W_in x                 q, k and v as in Gated DeltaNet
    S ← α[t] S[t-1]                         α = exp(-exp(A) softplus(a + δ))     for each head
    S ← S + βᵢ[t] kᵢ[t] (vᵢ[t] - Sᵀ kᵢ[t])ᵀ      for i from 1 to n               βᵢ = 2 σ(bᵢ)
    y[t] = W_out (RMSNorm(S[t]ᵀ q[t] / √d) ⊙ silu(g))

A step multiplies the memory by a product of n reflections, which can be any rotation of n planes:
more steps track more. As in the published layer q is divided by √d, which its bare op is not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, normal, split, step_size_bias, uniform
from ..ops.delta_product import delta_product, delta_product_step
from ..precision import linear
from ..types import Frame, Signal
from .base import AbstractRecurrentMixer, AbstractSequenceMixerConfig
from .heads import read_out, split_heads
from .memory import (
    correction_rate,
    delta_rule_flops,
    empty_memory,
    grouped_sizes,
    learned_decay,
    memory_flops,
    MemoryState,
    prefill_memory,
    require_memory,
    step_memory,
    unit,
)


@dataclass(frozen=True)
class GatedDeltaProductSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Linear attention with several steps of the delta rule at every position.

    - `num_householder`: corrections at a position, each with a key, a value and a β of its own.
    - `num_heads`: heads of queries and keys; by default the width divided by the head size.
    - `head_dim`: size of a query or key; by default the width divided by `num_heads`, and without
        that 64 or the largest smaller power of two that divides the width.
    - `num_value_heads`: heads of values, of which as many share each query and key; by default one.
    - `value_head_dim`: size of a value; by default twice `head_dim`.
    - `negative_eigenvalues`: β up to 2 instead of 1. Without, the product is no reflection.
    - `forget_gate`: one decay for each head; else nothing is forgotten.
    - `activation`: of queries, keys and values, after the short convolution. silu hardly leaves keys
        a negative number, so that it keeps them from turning far.
    - `short_width`: taps of the short convolution.
    - `output_gate`: multiply the output by a gate, as large as the values.
    - `norm_eps`: added to the mean square that the norm divides by.
    - `dt_min`, `dt_max`, `dt_floor`: where softplus(δ) starts: uniform in its logarithm, then at least
        the floor.
    - `chunk`: positions computed together: more take more work each, and less memory in training.
    """

    num_householder: int = 2
    num_heads: int | None = None
    head_dim: int | None = None
    num_value_heads: int | None = None
    value_head_dim: int | None = None
    negative_eigenvalues: bool = True
    forget_gate: bool = True
    activation: Literal["silu", "none"] = "silu"
    short_width: int = 4
    output_gate: bool = True
    norm_eps: float = 1e-6
    dt_min: float = 0.001
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    chunk: int = 32

    def __post_init__(self):
        require_memory(self)
        require_positive(self, "num_householder", "dt_min", "dt_floor")
        require_choice(self, "activation")
        require(self.dt_min <= self.dt_max, self, "dt_max", "at least dt_min")

    def build(self, in_features: int, key: PRNGKeyArray) -> "GatedDeltaProductSequenceMixer":
        return GatedDeltaProductSequenceMixer(in_features, self, key)


class GatedDeltaProductSequenceMixer(AbstractRecurrentMixer[MemoryState]):
    """Linear attention with several steps of the delta rule at every position."""

    config: GatedDeltaProductSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    num_value_heads: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    qkv_proj: Float[Array, "channels features"]  # q, every k, every v
    decay_proj: Float[Array, "heads features"] | None  # a
    beta_proj: Float[Array, "updates_heads features"]  # b
    gate_proj: Float[Array, "values features"] | None  # g
    short_weight: Float[Array, "width channels"]
    log_decay: Float[Array, " heads"] | None  # A
    dt_bias: Float[Array, " heads"] | None  # δ
    norm_weight: Float[Array, " value"]
    out_proj: Float[Array, "features values"]  # W_out

    def __init__(
        self, in_features: int, cfg: GatedDeltaProductSequenceMixerConfig, key: PRNGKeyArray
    ):
        qkv_key, beta_key, gate_key, short_key, out_key, *decay_keys = split(key, 8)
        self.config = cfg
        self.in_features = in_features
        sizes = grouped_sizes(in_features, cfg, value_expand=2)
        self.num_heads, self.head_dim, self.num_value_heads, self.value_head_dim = sizes
        heads, updates = (self.num_value_heads,), cfg.num_householder
        keys, values = self.num_heads * self.head_dim, self.num_value_heads * self.value_head_dim
        channels = keys + updates * (keys + values)
        self.qkv_proj = linear_weight(qkv_key, in_features, channels)
        self.beta_proj = linear_weight(beta_key, in_features, updates * self.num_value_heads)
        self.decay_proj = self.gate_proj = None
        self.log_decay = self.dt_bias = None
        if cfg.forget_gate:
            self.decay_proj = linear_weight(decay_keys[0], in_features, self.num_value_heads)
            self.log_decay = jnp.log(uniform(decay_keys[1], heads, 1.0, 16.0))
            self.dt_bias = step_size_bias(
                decay_keys[2], heads, cfg.dt_min, cfg.dt_max, cfg.dt_floor
            )
        if cfg.output_gate:
            self.gate_proj = linear_weight(gate_key, in_features, values)
        shape = (cfg.short_width, channels)
        self.short_weight = normal(short_key, shape, 1 / math.sqrt(cfg.short_width))
        self.norm_weight = constant(1, (self.value_head_dim,))
        self.out_proj = linear_weight(out_key, values, in_features)

    @property
    def causal(self) -> bool:
        return True

    @property
    def recurrence_parameters(self) -> frozenset[str]:
        return frozenset({"log_decay", "dt_bias"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        return self.prefill(self.init_state(len(x), x.dtype), x, context=context)[1]

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> MemoryState:
        width, channels = self.short_weight.shape
        memory = (self.num_value_heads, self.head_dim, self.value_head_dim)
        return empty_memory((width - 1, channels), memory, dtype)

    def prefill(
        self, state: MemoryState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Signal]:
        recurrence = partial(delta_product, chunk=self.config.chunk)
        return prefill_memory(self, self._advance, recurrence, state, x, context)

    def step(
        self, state: MemoryState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[MemoryState, Frame]:
        return step_memory(self, self._advance, delta_product_step, state, x, context)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time, updates = math.prod(spatial_dims), self.config.num_householder
        sizes = (self.num_value_heads, self.head_dim, self.value_head_dim)
        correction = delta_rule_flops(updates * self.config.chunk, updates * time, *sizes)
        return memory_flops(self, time, updates * correction, inference)

    def _advance(
        self,
        state: MemoryState,
        x: Float[Array, "*time features"],
        convolve: Callable,
        remember: Callable,
    ) -> tuple[MemoryState, Float[Array, "*time features"]]:
        """One position or many, by the ops given for that."""
        mixed = linear(x, self.qkv_proj)
        short, mixed = convolve(mixed, self.short_weight, None, state.short)
        if self.config.activation == "silu":
            mixed = jax.nn.silu(mixed)
        q, k, v = self._heads(mixed)
        beta = split_heads(linear(x, self.beta_proj), self.config.num_householder)
        beta = correction_rate(beta, self.config.negative_eigenvalues)
        memory, y = remember(state.memory, q, k, v, beta, self._decay(x))
        y = read_out(y, x, self.norm_weight, self.config.norm_eps, self.gate_proj, self.out_proj)
        return MemoryState(short, memory), y

    def _heads(self, mixed: Float[Array, "*time channels"]) -> tuple[Array, Array, Array]:
        """q, and k and v of every correction, by head."""
        keys, updates = self.num_heads * self.head_dim, self.config.num_householder
        q, k, v = jnp.split(mixed, (keys, (1 + updates) * keys), axis=-1)
        q, k = split_heads(q, self.num_heads), split_heads(k, updates)
        q = unit(q) / math.sqrt(self.head_dim)
        k = unit(split_heads(k, self.num_heads))
        v = split_heads(split_heads(v, updates), self.num_value_heads)
        return q.astype(v.dtype), k.astype(v.dtype), v

    def _decay(self, x: Float[Array, "*time features"]) -> Float[Array, "*time heads"] | None:
        if self.decay_proj is None or self.log_decay is None or self.dt_bias is None:
            return None
        return learned_decay(linear(x, self.decay_proj), self.log_decay, self.dt_bias)

"""Attention with grouped queries and rotary positions (https://arxiv.org/abs/1706.03762, and
https://arxiv.org/abs/2305.13245 for the groups).

    q[t], k[t], v[t] = W_q x[t], W_k x[t], W_v x[t]       q and k turned by t (RoPE)
    y[t] = W_o Σ_s softmax(q[t] · k[s] / √head) v[s]      over the s that t sees

and, with an output gate, W_o (σ(W_g x[t]) ⊙ Σ_s …) (https://arxiv.org/abs/2505.06708).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import constant, linear_weight, split
from ..norms import RMSNorm, RMSNormConfig
from ..positions import AbstractRopeScalingConfig, rope, turn, Turns
from ..precision import linear
from ..types import Frame, Signal
from .attention_core import AttentionCore, AttentionState
from .base import (
    AbstractRecurrentMixer,
    AbstractSequenceMixerConfig,
    enter,
    enter_step,
    refuse_axis_name,
    require_causal,
)
from .heads import head_sizes, join_heads, projection_flops, require_width, split_heads


@dataclass(frozen=True)
class AttentionSequenceMixerConfig(AbstractSequenceMixerConfig):
    """Softmax attention: global, or local with a window.

    - `num_heads`: query heads; by default the width divided by the head size.
    - `num_kv_heads`: heads of keys and values, each shared by a group of query heads; by default
        as many as query heads.
    - `head_dim`: size of a head; by default the width divided by `num_heads`, and without that 64
        or the largest smaller power of two that divides the width.
    - `window`: a position sees the last `window` positions, itself among them; if not causal,
        those less than `window` away on either side.
    - `causal`: a position sees no later one.
    - `qk_norm`: RMS-normalise queries and keys, which keeps the scores bounded in training.
    - `norm`: how, with `qk_norm`.
    - `norm_over`: each head by itself, with the same weights, or all heads together.
    - `rope_base`: base of the rotary position embedding; None leaves positions out.
    - `rope_fraction`: the part of a head that it turns, from the first feature on.
    - `rope_scaling`: how its angles are slowed down for sequences longer than those trained on.
    - `soft_cap`: bound the scores smoothly, `soft_cap · tanh(score / soft_cap)`.
    - `bias`: which projections have a learned bias.
    - `output_gate`: multiply what the heads read by a gate, as large as they.
    """

    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    causal: bool = True
    qk_norm: bool = False
    norm: RMSNormConfig = RMSNormConfig()
    norm_over: Literal["head", "all"] = "head"
    rope_base: float | None = 10000.0
    rope_fraction: float = 1.0
    rope_scaling: AbstractRopeScalingConfig | None = None
    soft_cap: float | None = None
    bias: Literal["none", "qkv", "out", "all"] = "none"
    output_gate: bool = False

    def __post_init__(self):
        optional = ("num_heads", "num_kv_heads", "head_dim", "window", "rope_base", "soft_cap")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        if self.num_heads is not None and self.num_kv_heads is not None:
            law = f"a divisor of num_heads={self.num_heads}"
            require(self.num_heads % self.num_kv_heads == 0, self, "num_kv_heads", law)
        require_choice(self, "bias", "norm_over")
        require(0 < self.rope_fraction <= 1, self, "rope_fraction", "above 0 and at most 1")
        if self.head_dim is not None and self.rope_base is not None:
            law = "even where RoPE turns it, which is by pairs (rope_base=None leaves it out)"
            require(_rotary_dim(self, self.head_dim) % 2 == 0, self, "head_dim", law)

    def build(self, in_features: int, key: PRNGKeyArray) -> "AttentionSequenceMixer":
        return AttentionSequenceMixer(in_features, self, key)


class AttentionSequenceMixer(AbstractRecurrentMixer[AttentionState]):
    """Multi-head attention.

    The state keeps the last `window` positions, or without a window `max_length` positions. When a
    document outgrows a state in which it should be whole, the output is NaN: nothing is forgotten
    unnoticed.
    """

    config: AttentionSequenceMixerConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    q_proj: Float[Array, "heads_head features"]
    k_proj: Float[Array, "kv_heads_head features"]
    v_proj: Float[Array, "kv_heads_head features"]
    gate_proj: Float[Array, "heads_head features"] | None  # W_g
    out_proj: Float[Array, "features heads_head"]
    q_bias: Float[Array, " heads_head"] | None
    k_bias: Float[Array, " kv_heads_head"] | None
    v_bias: Float[Array, " kv_heads_head"] | None
    gate_bias: Float[Array, " heads_head"] | None
    out_bias: Float[Array, " features"] | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None

    def __init__(self, in_features: int, cfg: AttentionSequenceMixerConfig, key: PRNGKeyArray):
        q_key, k_key, v_key, out_key, norm_key, gate_key = split(key, 6)
        self.config = cfg
        self.in_features = in_features
        self.num_heads, self.num_kv_heads, self.head_dim = _head_sizes(in_features, cfg)
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = linear_weight(q_key, in_features, q_size)
        self.k_proj = linear_weight(k_key, in_features, kv_size)
        self.v_proj = linear_weight(v_key, in_features, kv_size)
        gated = cfg.output_gate
        self.gate_proj = linear_weight(gate_key, in_features, q_size) if gated else None
        self.out_proj = linear_weight(out_key, q_size, in_features)
        inner = cfg.bias in ("qkv", "all")
        self.q_bias = constant(0, (q_size,)) if inner else None
        self.k_bias = constant(0, (kv_size,)) if inner else None
        self.v_bias = constant(0, (kv_size,)) if inner else None
        self.gate_bias = constant(0, (q_size,)) if inner and gated else None
        self.out_bias = constant(0, (in_features,)) if cfg.bias in ("out", "all") else None
        each = cfg.norm_over == "head"
        q_size, kv_size = (self.head_dim, self.head_dim) if each else (q_size, kv_size)
        self.q_norm = cfg.norm.build(q_size, norm_key) if cfg.qk_norm else None
        self.k_norm = cfg.norm.build(kv_size, norm_key) if cfg.qk_norm else None

    @property
    def causal(self) -> bool:
        return self.config.causal

    @property
    def uses(self) -> frozenset[str]:
        return frozenset() if self.config.rope_base is None else frozenset({"positions"})

    def __call__(
        self, x: Signal, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Signal:
        x, context = enter(self, x, context)
        refuse_axis_name(self, context)
        if len(x) == 0:
            return x
        q, k, v = self.project(x, context.positions_from(jnp.zeros((), jnp.int32), len(x)))
        return context.blank_padding(self.read_out(self._core(q, k, v, context), x))

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> AttentionState:
        require_causal(self, "build it with `causal=True`")
        return self._core.init_state(max_length, self.num_kv_heads, self.head_dim, dtype)

    def prefill(
        self, state: AttentionState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[AttentionState, Signal]:
        require_causal(self, "build it with `causal=True`")
        x, context = enter(self, x, context)
        refuse_axis_name(self, context)
        q, k, v = self.project(x, context.positions_from(state.length, len(x)))
        state, y = self._core.prefill(state, q, k, v, context)
        return state, context.blank_padding(self.read_out(y, x))

    def step(
        self, state: AttentionState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[AttentionState, Frame]:
        require_causal(self, "build it with `causal=True`")
        x, context = enter_step(self, x, context)
        refuse_axis_name(self, context)
        length = context.forget(state).length
        q, k, v = self.project(x, length if context.positions is None else context.positions)
        state, y = self._core.step(state, q, k, v, context)
        return state, context.blank_padding(self.read_out(y, x))

    @property
    def complexity(self) -> str:
        if self.config.window is None:
            return "O(L² · d + L · d²)"
        return "O(L · d² + L · w · d)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        time = math.prod(spatial_dims)
        scores = 4 * self.num_heads * self.head_dim * self._core.pairs(time)
        forward = time * projection_flops(self) + scores
        return forward if inference else 3 * forward

    @property
    def _core(self) -> AttentionCore:
        return AttentionCore(self.config.causal, self.config.window, self.config.soft_cap)

    def project(
        self,
        x: Float[Array, "*time features"],
        positions: Int[Array, "*time"],
        turns: Turns | None = None,
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each `(*time, heads, head)`.

        - `turns`: what RoPE turns by; by default what the positions say.
        """
        q = self._heads(linear(x, self.q_proj, self.q_bias), self.q_norm)
        k = self._heads(linear(x, self.k_proj, self.k_bias), self.k_norm)
        v = self._heads(linear(x, self.v_proj, self.v_bias), None)
        cfg = self.config
        if turns is not None:
            q, k = turn(q, *turns), turn(k, *turns)
        elif cfg.rope_base is not None:
            size = _rotary_dim(cfg, self.head_dim)
            rotate = partial(rope, base=cfg.rope_base, rotary_dim=size, scaling=cfg.rope_scaling)
            q, k = rotate(q, positions), rotate(k, positions)
        return q, k, v

    def _heads(
        self, x: Float[Array, "*time size"], norm: RMSNorm | None
    ) -> Float[Array, "*time heads head"]:
        x = norm(x) if norm is not None and self.config.norm_over == "all" else x
        x = split_heads(x, x.shape[-1] // self.head_dim)
        return norm(x) if norm is not None and self.config.norm_over == "head" else x

    def read_out(
        self, y: Float[Array, "*time heads head"], x: Float[Array, "*time features"]
    ) -> Float[Array, "*time features"]:
        """What the heads read, as features; `x` is the input, on which a gate depends."""
        y = join_heads(y)
        if self.gate_proj is not None:
            y = y * jax.nn.sigmoid(linear(x, self.gate_proj, self.gate_bias))
        return linear(y, self.out_proj, self.out_bias)


def _head_sizes(in_features: int, cfg: AttentionSequenceMixerConfig) -> tuple[int, int, int]:
    """The numbers of heads and of kv heads, and the size of a head."""
    heads, head = head_sizes(in_features, cfg, cfg.num_heads, cfg.head_dim)
    kv_heads = heads if cfg.num_kv_heads is None else cfg.num_kv_heads
    law = f"`num_kv_heads` to divide the {heads} heads"
    require_width(heads % kv_heads == 0, cfg, in_features, law)
    law = f"heads of even size for RoPE, not {head}: another `num_heads`, or `rope_base=None`"
    even = cfg.rope_base is None or _rotary_dim(cfg, head) % 2 == 0
    require_width(even, cfg, in_features, law)
    return heads, kv_heads, head


def _rotary_dim(cfg: AttentionSequenceMixerConfig, head_dim: int) -> int:
    """How many features of a head RoPE turns."""
    return int(cfg.rope_fraction * head_dim)

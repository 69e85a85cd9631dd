"""Attention over several streams (Mixture-of-Transformers, https://arxiv.org/abs/2411.04996).

    q[t], k[t], v[t] = W_q[m] x[t], W_k[m] x[t], W_v[m] x[t]       m the modality of position t
    y[t] = W_o[m] Σ_s softmax(q[t] · k[s] / √head) v[s]            over the s that t sees, of all m

Queries and keys are normalised, if asked for, and turned (RoPE) before that.
"""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..context import SequenceContext
from ..initializers import linear_weight, split
from ..norms import RMSNorm, RMSNormConfig
from ..positions import rope, turn
from ..precision import linear
from ..streams import Counting, Frames, Joint, start_streams, Streams, StreamsContext, Turns
from .attention_core import AttentionCore
from .heads import head_sizes, join_heads, projection_flops, require_width, split_heads
from .streams_base import (
    AbstractStreamsMixer,
    AbstractStreamsMixerConfig,
    at_one_position,
    open_chunk,
    require_modalities,
    step_by_chunk,
    StreamsState,
)


@dataclass(frozen=True)
class MoTAttentionConfig(AbstractStreamsMixerConfig):
    """One attention over all streams, with projections for each.

    - `modalities`: the streams that there may be, in the order in which they come.
    - `num_heads`, `num_kv_heads`, `head_dim`: as in `AttentionSequenceMixerConfig`.
    - `qk_norm`, `norm`: RMS-normalise queries and keys, with weights for each modality, and how.
    - `is_causal`: a position sees none that comes after it in the joint order.
    - `bidirectional`: modalities whose positions see later ones as well, up to the next position of
        another modality. They are read in whole runs, never by `step`.
    - `counting`: what RoPE turns by: positions of a modality count its own, or all that came before
        them in the joint order.
    - `rope_base`: base of the rotary position embedding; None leaves positions out.
    """

    modalities: tuple[str, ...]
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    norm: RMSNormConfig = RMSNormConfig()
    is_causal: bool = True
    bidirectional: tuple[str, ...] = ()
    counting: Counting = "restart"
    rope_base: float | None = 10000.0

    def __post_init__(self):
        require_modalities(self, self.modalities)
        optional = ("num_heads", "num_kv_heads", "head_dim", "rope_base")
        require_positive(self, *(name for name in optional if getattr(self, name) is not None))
        if self.num_heads is not None and self.num_kv_heads is not None:
            law = f"a divisor of num_heads={self.num_heads}"
            require(self.num_heads % self.num_kv_heads == 0, self, "num_kv_heads", law)
        known = set(self.bidirectional) <= set(self.modalities)
        require(known, self, "bidirectional", f"some of modalities={self.modalities}")
        law = "left out with is_causal=False, where every position sees every other"
        require(self.is_causal or not self.bidirectional, self, "bidirectional", law)
        require_choice(self, "counting")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MoTAttention":
        return MoTAttention(in_features, self, key)


class Projections(eqx.Module):
    """Those of one modality."""

    q_proj: Float[Array, "heads_head features"]  # W_q
    k_proj: Float[Array, "kv_heads_head features"]  # W_k
    v_proj: Float[Array, "kv_heads_head features"]  # W_v
    out_proj: Float[Array, "features heads_head"]  # W_o
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None


class MoTAttention(AbstractStreamsMixer):
    """Multi-head attention over all streams. Nothing is random: the key is not used.

    A query that sees no position gets zeros. The state keeps `max_length` positions; when a document
    outgrows it, the output is NaN.
    """

    config: MoTAttentionConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    projections: dict[str, Projections]

    def __init__(self, in_features: int, cfg: MoTAttentionConfig, key: PRNGKeyArray):
        heads, head = head_sizes(in_features, cfg, cfg.num_heads, cfg.head_dim)
        kv_heads = heads if cfg.num_kv_heads is None else cfg.num_kv_heads
        law = f"`num_kv_heads` to divide the {heads} heads"
        require_width(heads % kv_heads == 0, cfg, in_features, law)
        law = f"heads of even size for RoPE, not {head}: other `num_heads`, or `rope_base=None`"
        require_width(cfg.rope_base is None or head % 2 == 0, cfg, in_features, law)
        self.config = cfg
        self.in_features = in_features
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, head
        keys = split(key, len(cfg.modalities))
        self.projections = {
            name: self._build_projections(key)
            for name, key in zip(cfg.modalities, keys, strict=True)
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.config.modalities

    @property
    def causal(self) -> bool:
        return self.config.is_causal

    @property
    def uses(self) -> frozenset[str]:
        return frozenset() if self.config.rope_base is None else frozenset({"positions"})

    def __call__(
        self,
        streams: Streams,
        key: PRNGKeyArray | None = None,
        *,
        context: StreamsContext | None = None,
    ) -> Streams:
        streams, joint, _ = open_chunk(self, streams, context, None, self.config.counting)
        q, k, v = self._project(streams, joint, context)
        return self._readout(self._core(q, k, v, joint.context, self._spans(joint)), joint)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StreamsState:
        self._require_causal()
        mixing = self._core.init_state(max_length, self.num_kv_heads, self.head_dim, dtype)
        return StreamsState(mixing, start_streams(self.modalities))

    def prefill(
        self, state: StreamsState, streams: Streams, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Streams]:
        self._require_causal()
        streams, joint, cursor = open_chunk(
            self, streams, context, state.cursor, self.config.counting
        )
        q, k, v = self._project(streams, joint, context)
        spans = self._spans(joint)
        mixing, y = self._core.prefill(state.mixing, q, k, v, joint.context, spans)
        return StreamsState(mixing, cursor), self._readout(y, joint)

    def step(
        self, state: StreamsState, frames: Frames, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Frames]:
        self._require_causal()
        if frames.keys() & set(self.config.bidirectional):
            raise ValueError(
                f"`MoTAttention` sees later positions of {sorted(frames)[0]!r}, which is "
                "`bidirectional`: read a whole run of it by `prefill`."
            )

        def advance(streams: Streams, context: StreamsContext) -> tuple[StreamsState, Streams]:
            streams, joint, cursor = open_chunk(
                self, streams, context, state.cursor, self.config.counting
            )
            q, k, v = (x[0] for x in self._project(streams, joint, context))
            here = at_one_position(joint.context)
            mixing, y = self._core.step(state.mixing, q, k, v, here)
            return StreamsState(mixing, cursor), self._readout(y[None], joint)

        return step_by_chunk(advance, frames, context)

    @property
    def complexity(self) -> str:
        return "O(L² · d + L · d²)"

    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        scores = 4 * self.num_heads * self.head_dim * self._core.pairs(sum(lengths.values()))
        each = {name: projection_flops(part) for name, part in self.projections.items()}
        forward = scores + sum(time * each[name] for name, time in lengths.items())
        return forward if inference else 3 * forward

    @property
    def _core(self) -> AttentionCore:
        return AttentionCore(self.config.is_causal)

    def _build_projections(self, key: PRNGKeyArray) -> Projections:
        q_key, k_key, v_key, out_key, norm_key = split(key, 5)
        cfg, width = self.config, self.in_features
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = lambda: cfg.norm.build(self.head_dim, norm_key) if cfg.qk_norm else None
        return Projections(
            linear_weight(q_key, width, q_size),
            linear_weight(k_key, width, kv_size),
            linear_weight(v_key, width, kv_size),
            linear_weight(out_key, q_size, width),
            norm(),
            norm(),
        )

    def _project(
        self, streams: Streams, joint: Joint, context: StreamsContext | None
    ) -> tuple[Array, ...]:
        """Queries, keys and values in the joint order, each `(time, heads, head)`."""
        tables = {} if context is None else context.rope
        each = {
            name: self._project_one(name, x, joint.streams[name], tables.get(name))
            for name, x in streams.items()
        }
        return tuple(joint.join({name: qkv[i] for name, qkv in each.items()}) for i in range(3))

    def _project_one(
        self,
        name: str,
        x: Float[Array, "time features"],
        context: SequenceContext,
        table: Turns | None,
    ) -> tuple[Array, Array, Array]:
        part = self.projections[name]
        q = split_heads(linear(x, part.q_proj), self.num_heads)
        k = split_heads(linear(x, part.k_proj), self.num_kv_heads)
        v = split_heads(linear(x, part.v_proj), self.num_kv_heads)
        q = q if part.q_norm is None else part.q_norm(q)
        k = k if part.k_norm is None else part.k_norm(k)
        base, positions = self.config.rope_base, context.positions
        if table is not None:
            q, k = turn(q, *table), turn(k, *table)
        elif base is not None and positions is not None:
            q, k = rope(q, positions, base), rope(k, positions, base)
        return q, k, v

    def _spans(self, joint: Joint) -> Int[Array, " time"] | None:
        """For positions of bidirectional modalities the number of their run; for others -1."""
        names = list(joint.sizes)
        spans = None
        for name in self.config.bidirectional:
            if name not in joint.sizes:
                continue
            own = joint.labels() == names.index(name)
            mask = joint.context.mask
            other = ~own if mask is None else ~own & mask
            # Within a run no other position comes between; runs of two modalities differ.
            run = len(names) * jnp.cumsum(other) + names.index(name)
            spans = jnp.full(own.shape, -1) if spans is None else spans
            spans = jnp.where(own, run, spans)
        return spans

    def _readout(self, y: Float[Array, "time heads head"], joint: Joint) -> Streams:
        parts = joint.split(join_heads(y)).items()
        return {
            name: joint.streams[name].blank_padding(linear(y, self.projections[name].out_proj))
            for name, y in parts
        }

    def _require_causal(self) -> None:
        if not self.config.is_causal:
            raise ValueError(
                "`MoTAttention` is not causal, so it cannot advance step by step: build it with "
                "`is_causal=True`."
            )

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

from ..config import require, require_choice
from ..initializers import split
from ..norms import RMSNormConfig
from ..positions import AbstractRopeScalingConfig
from ..streams import Counting, Frames, Joint, start_streams, Streams, StreamsContext
from .attention import AttentionSequenceMixer, AttentionSequenceMixerConfig
from .attention_core import AttentionCore
from .heads import projection_flops
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
    - `rope_base`, `rope_scaling`: as in `AttentionSequenceMixerConfig`.
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
    rope_scaling: AbstractRopeScalingConfig | None = None

    def __post_init__(self):
        require_modalities(self, self.modalities)
        _ = self.attention  # which checks the rest
        known = set(self.bidirectional) <= set(self.modalities)
        require(known, self, "bidirectional", f"some of modalities={self.modalities}")
        law = "left out with is_causal=False, where every position sees every other"
        require(self.is_causal or not self.bidirectional, self, "bidirectional", law)
        require_choice(self, "counting")

    @property
    def attention(self) -> AttentionSequenceMixerConfig:
        """That of one modality, whose projections it has."""
        return AttentionSequenceMixerConfig(
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            causal=self.is_causal,
            qk_norm=self.qk_norm,
            norm=self.norm,
            rope_base=self.rope_base,
            rope_scaling=self.rope_scaling,
        )

    def build(self, in_features: int, key: PRNGKeyArray) -> "MoTAttention":
        return MoTAttention(in_features, self, key)


class MoTAttention(AbstractStreamsMixer):
    """Multi-head attention over all streams. Nothing is random: the key is not used.

    A query that sees no position gets zeros. The state keeps `max_length` positions; when a document
    outgrows it, the output is NaN.
    """

    config: MoTAttentionConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    projections: dict[str, AttentionSequenceMixer]

    def __init__(self, in_features: int, cfg: MoTAttentionConfig, key: PRNGKeyArray):
        self.config = cfg
        self.in_features = in_features
        keys = split(key, len(cfg.modalities))
        self.projections = {
            name: cfg.attention.build(in_features, own)
            for name, own in zip(cfg.modalities, keys, strict=True)
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
        y = self._core(q, k, v, joint.context, self._spans(joint))
        return self._readout(y, streams, joint)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StreamsState:
        self._require_causal()
        first = self.projections[self.modalities[0]]
        mixing = self._core.init_state(max_length, first.num_kv_heads, first.head_dim, dtype)
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
        return StreamsState(mixing, cursor), self._readout(y, streams, joint)

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
            return StreamsState(mixing, cursor), self._readout(y[None], streams, joint)

        return step_by_chunk(advance, frames, context)

    @property
    def complexity(self) -> str:
        return "O(L² · d + L · d²)"

    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        first = self.projections[self.modalities[0]]
        scores = 4 * first.num_heads * first.head_dim * self._core.pairs(sum(lengths.values()))
        each = {name: projection_flops(part) for name, part in self.projections.items()}
        forward = scores + sum(time * each[name] for name, time in lengths.items())
        return forward if inference else 3 * forward

    @property
    def _core(self) -> AttentionCore:
        return AttentionCore(self.config.is_causal)

    def _project(
        self, streams: Streams, joint: Joint, context: StreamsContext | None
    ) -> tuple[Array, ...]:
        """Queries, keys and values in the joint order, each `(time, heads, head)`."""
        turns = {} if context is None else context.rope
        each = {}
        for name, x in streams.items():
            positions = joint.streams[name].positions
            assert positions is not None  # counted, if not given
            each[name] = self.projections[name].project(x, positions, turns.get(name))
        return tuple(joint.join({name: qkv[i] for name, qkv in each.items()}) for i in range(3))

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

    def _readout(self, y: Float[Array, "time heads head"], streams: Streams, joint: Joint):
        return {
            name: joint.streams[name].blank_padding(
                self.projections[name].read_out(heads, streams[name])
            )
            for name, heads in joint.split(y).items()
        }

    def _require_causal(self) -> None:
        if not self.config.is_causal:
            raise ValueError(
                "`MoTAttention` is not causal, so it cannot advance step by step: build it with "
                "`is_causal=True`."
            )

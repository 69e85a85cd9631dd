"""Block of a mixture of transformers (https://arxiv.org/abs/2411.04996).

h[m] = x[m] + mix({m: norm_m(x[m])})[m]         one mixing for all modalities m
y[m] = h[m] + ffn_m(norm'_m(h[m]))              a feed-forward layer for each
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ..channel_mixers import (
    AbstractChannelMixer,
    AbstractChannelMixerConfig,
    AbstractRoutedChannelMixer,
    SwiGLUConfig,
)
from ..complexity import total
from ..config import require
from ..initializers import rescale, split
from ..norms import AbstractNorm, AbstractNormConfig, RMSNormConfig
from ..positions import AbstractRopeScalingConfig
from ..sequence_mixers import (
    AbstractQKVOperatorConfig,
    AbstractSequenceMixerConfig,
    AbstractStreamsMixer,
    MoTAttentionConfig,
    MoTMixerConfig,
    StreamsState,
)
from ..streams import Counting, Frames, require_known, Streams, StreamsContext
from ..types import Aux, no_aux
from .base import AbstractStreamsBlock, AbstractStreamsBlockConfig, mix_channels


_ATTENTION = (
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "qk_norm",
    "bidirectional",
    "rope_base",
    "rope_scaling",
)


@dataclass(frozen=True)
class MoTBlockConfig(AbstractStreamsBlockConfig):
    """Attention, or another mixer, over all streams; norms and feed-forward layers for each.

    - `modalities`: the streams that there may be, in the order in which they come.
    - `num_heads`, `num_kv_heads`, `head_dim`, `qk_norm`, `bidirectional`: as in `MoTAttentionConfig`.
    - `counting`: what positions count, as in `MoTAttentionConfig`.
    - `rope_base`, `rope_scaling`: attention's rotary positions; a base of None leaves them out.
    - `shared`: what mixes the streams in place of attention: a QKV operator or any sequence mixer.
        Only without what concerns attention.
    - `channel_mixer`: the feed-forward layer of every modality.
    - `norm`: before the mixing and before the feed-forward layers.
    - `start`: `"identity"` sets the projections to the residual streams to zero, but for those of
        experts, so that a new block changes nothing; `"random"` draws them.
    """

    modalities: tuple[str, ...]
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qk_norm: bool = False
    bidirectional: tuple[str, ...] = ()
    counting: Counting = "restart"
    rope_base: float | None = 10000.0
    rope_scaling: AbstractRopeScalingConfig | None = None
    shared: AbstractQKVOperatorConfig | AbstractSequenceMixerConfig | None = None
    channel_mixer: AbstractChannelMixerConfig = SwiGLUConfig()
    norm: AbstractNormConfig = RMSNormConfig()
    start: Literal["identity", "random"] = "identity"

    def __post_init__(self):
        if self.shared is not None:
            for field in _ATTENTION:
                law = "left out beside `shared`, since it concerns attention"
                default = type(self).__dataclass_fields__[field].default
                require(getattr(self, field) == default, self, field, law)
        _ = self.mixer  # which checks the rest

    @property
    def mixer(self) -> MoTAttentionConfig | MoTMixerConfig:
        """What mixes the streams."""
        if self.shared is not None:
            return MoTMixerConfig(self.modalities, self.shared, self.counting)
        return MoTAttentionConfig(
            self.modalities,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.qk_norm,
            norm=self.norm if isinstance(self.norm, RMSNormConfig) else RMSNormConfig(),
            bidirectional=self.bidirectional,
            counting=self.counting,
            rope_base=self.rope_base,
            rope_scaling=self.rope_scaling,
        )

    def build(self, in_features: int, key: PRNGKeyArray) -> "MoTBlock":
        return MoTBlock(in_features, self, key)


class MoTBlock(AbstractStreamsBlock):
    """Mixing over all streams, then a feed-forward layer for each, around the residual streams.

    The state is the mixer's.
    """

    config: MoTBlockConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    sequence_norms: dict[str, AbstractNorm]
    sequence_mixer: AbstractStreamsMixer
    channel_norms: dict[str, AbstractNorm]
    channel_mixers: dict[str, AbstractChannelMixer | AbstractRoutedChannelMixer]

    def __init__(self, in_features: int, cfg: MoTBlockConfig, key: PRNGKeyArray):
        mixer_key, norm_key, *keys = split(key, len(cfg.modalities) + 2)
        norms = lambda: {name: cfg.norm.build(in_features, norm_key) for name in cfg.modalities}
        channels = {
            name: cfg.channel_mixer.build(in_features, key)
            for name, key in zip(cfg.modalities, keys, strict=True)
        }
        mixer = cfg.mixer.build(in_features, mixer_key)
        self.config = cfg
        self.in_features = in_features
        self.sequence_norms, self.channel_norms = norms(), norms()
        identity = cfg.start == "identity"
        self.sequence_mixer = _silence(mixer) if identity else mixer
        self.channel_mixers = {
            name: _silence(one) if identity and isinstance(one, AbstractChannelMixer) else one
            for name, one in channels.items()
        }

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.config.modalities

    @property
    def causal(self) -> bool:
        return self.sequence_mixer.causal

    @property
    def uses(self) -> frozenset[str]:
        return self.sequence_mixer.uses

    def __call__(
        self,
        streams: Streams,
        key: PRNGKeyArray | None = None,
        *,
        context: StreamsContext | None = None,
    ) -> tuple[Streams, Aux]:
        mixer_key, channel_key = (None, None) if key is None else jr.split(key)
        y = self.sequence_mixer(self._normalize(streams), mixer_key, context=context)
        return self._mix_channels(_add(streams, y), channel_key, context)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StreamsState:
        return self.sequence_mixer.init_state(max_length, dtype)

    def prefill(
        self, state: StreamsState, streams: Streams, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Streams]:
        normal = self._normalize(streams)
        state, y = self.sequence_mixer.prefill(state, normal, context=context)
        return state, self._mix_channels(_add(streams, y), None, context)[0]

    def step(
        self, state: StreamsState, frames: Frames, *, context: StreamsContext | None = None
    ) -> tuple[StreamsState, Frames]:
        normal = self._normalize(frames)
        state, y = self.sequence_mixer.step(state, normal, context=context)
        return state, self._mix_channels(_add(frames, y), None, context)[0]

    @property
    def complexity(self) -> str:
        channels = (mixer.complexity for mixer in self.channel_mixers.values())
        return total(self.sequence_mixer.complexity, *channels)

    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        count = self.sequence_mixer.flop_count(lengths, inference)
        for name, time in lengths.items():
            parts = (self.sequence_norms, self.channel_norms, self.channel_mixers)
            count += sum(part[name].flop_count(time, inference) for part in parts)
        return count

    def _normalize(self, streams):
        require_known(self, self.modalities, streams)
        return {name: self.sequence_norms[name](x) for name, x in streams.items()}

    def _mix_channels(self, streams, key: PRNGKeyArray | None, context: StreamsContext | None):
        context = StreamsContext() if context is None else context
        keys = [None] * len(streams) if key is None else jr.split(key, len(streams))
        aux, mixed = no_aux(), {}
        for (name, x), own in zip(sorted(streams.items()), keys, strict=True):
            normal = self.channel_norms[name](x)
            mixed[name], one = mix_channels(
                self.channel_mixers[name], normal, own, context.of(name)
            )
            aux = aux.plus(one)
        return _add(streams, mixed), aux


def _add(streams, branches):
    return {name: x + branches[name].astype(x.dtype) for name, x in streams.items()}


def _silence(mixer):
    """The mixer with zeros in its projections to the residual stream."""

    def silence(path, leaf):
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        outermost = names[0] in ("projections", "out_proj") and names[-1] == "out_proj"
        return rescale(leaf, 0.0) if outermost else leaf

    return jax.tree_util.tree_map_with_path(silence, mixer)

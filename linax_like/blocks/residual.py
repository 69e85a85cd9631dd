"""Residual block: a sequence mixer, then a channel mixer, each around a residual stream. Between them
positions may read from condition tokens.

    pre-norm     x = x + s ⊙ mixer(norm(x))        https://arxiv.org/abs/2002.04745
    post-norm    x = norm(x + s ⊙ mixer(x))        https://arxiv.org/abs/1706.03762
    branch-norm  x = x + s ⊙ norm(mixer(x))        https://arxiv.org/abs/2501.00656

s is a learned layer scale (https://arxiv.org/abs/2103.17239); a whole branch may be dropped in
training (stochastic depth, https://arxiv.org/abs/1603.09382).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..channel_mixers import (
    AbstractChannelMixer,
    AbstractChannelMixerConfig,
    AbstractRoutedChannelMixer,
    SwiGLUConfig,
)
from ..complexity import total
from ..config import require, require_choice
from ..context import SequenceContext
from ..global_response_norm import GlobalResponseNorm, GlobalResponseNormConfig
from ..initializers import constant, split
from ..norms import AbstractNorm, AbstractNormConfig, RMSNormConfig
from ..sequence_mixers import (
    AbstractRecurrentMixer,
    AbstractSequenceMixer,
    AbstractSequenceMixerConfig,
    CrossAttention,
    CrossAttentionConfig,
    S4DSequenceMixerConfig,
)
from ..types import Aux, Frame, Grid, no_aux, Signal
from .base import AbstractBlock, AbstractBlockConfig, keep, mix_channels, recurrent


@dataclass(frozen=True)
class ResidualBlockConfig(AbstractBlockConfig):
    """A sequence mixer and a channel mixer, each with a norm and a residual connection.

    - `sequence_mixer`: what mixes along time.
    - `channel_mixer`: what acts on single positions; None leaves that half of the block out.
    - `norm`, `norm_position`: `"pre"` trains deep stacks more easily, `"post"` is the original form,
        `"branch"` the one of OLMo 2, which bounds what a branch adds.
    - `dropout`: probability that a scalar of a branch's output is dropped in training.
    - `drop_path`: probability that a whole branch is dropped in training, example by example.
    - `layer_scale`: initial value of a learned factor per feature on each branch; None for none.
    - `compute_dtype`: what the mixers compute in. `"input"` follows the residual stream; `"bfloat16"`
        lets a float32 stream carry the sum while the mixers run in half precision.
    - `condition_mixer`: by which positions read `context.condition_tokens`, as in a decoder that
        translates; None for no such branch.
    - `response_norm`: of what the sequence mixer yields, as in ViT-5; the block then is not causal.
    """

    sequence_mixer: AbstractSequenceMixerConfig
    channel_mixer: AbstractChannelMixerConfig | None = SwiGLUConfig()
    norm: AbstractNormConfig = RMSNormConfig()
    norm_position: Literal["pre", "post", "branch"] = "pre"
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float | None = None
    compute_dtype: Literal["input", "bfloat16"] = "input"
    condition_mixer: CrossAttentionConfig | None = None
    response_norm: GlobalResponseNormConfig | None = None

    def __post_init__(self):
        require_choice(self, "norm_position", "compute_dtype")
        require(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        require(0 <= self.drop_path < 1, self, "drop_path", "in [0, 1)")
        mixer = self.sequence_mixer
        if isinstance(mixer, S4DSequenceMixerConfig) and mixer.transposed:
            raise ValueError(
                "`ResidualBlockConfig` works on (time, features): its `sequence_mixer` must not be "
                "`S4DSequenceMixerConfig(transposed=True)`. Leave `transposed` out."
            )

    def build(self, in_features: int, key: PRNGKeyArray) -> "ResidualBlock":
        return ResidualBlock(in_features, self, key)


class ResidualBlock(AbstractBlock):
    """Sequence mixer, then channel mixer, each around the residual stream.

    The state is the sequence mixer's.
    """

    config: ResidualBlockConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    sequence_norm: AbstractNorm
    sequence_mixer: AbstractSequenceMixer
    response_norm: GlobalResponseNorm | None
    sequence_scale: Float[Array, " features"] | None
    condition_norm: AbstractNorm | None
    condition_mixer: CrossAttention | None
    condition_scale: Float[Array, " features"] | None
    channel_norm: AbstractNorm | None
    channel_mixer: AbstractChannelMixer | AbstractRoutedChannelMixer | None
    channel_scale: Float[Array, " features"] | None

    def __init__(self, in_features: int, cfg: ResidualBlockConfig, key: PRNGKeyArray):
        sequence_key, channel_key, *norm_keys, condition_key, response_key = split(key, 7)
        build = lambda part, key: None if part is None else part.build(in_features, key)
        norm_of = lambda part, key: None if part is None else cfg.norm.build(in_features, key)
        scale_of = lambda part: None if part is None else _layer_scale(cfg, in_features)
        self.config = cfg
        self.in_features = in_features
        self.sequence_norm = cfg.norm.build(in_features, norm_keys[0])
        self.sequence_mixer = cfg.sequence_mixer.build(in_features, sequence_key)
        self.response_norm = build(cfg.response_norm, response_key)
        self.sequence_scale = _layer_scale(cfg, in_features)
        self.condition_norm = norm_of(cfg.condition_mixer, norm_keys[2])
        self.condition_mixer = build(cfg.condition_mixer, condition_key)
        self.condition_scale = scale_of(cfg.condition_mixer)
        self.channel_norm = norm_of(cfg.channel_mixer, norm_keys[1])
        self.channel_mixer = build(cfg.channel_mixer, channel_key)
        self.channel_scale = scale_of(cfg.channel_mixer)

    @property
    def causal(self) -> bool:
        return self.sequence_mixer.causal and self.response_norm is None

    @property
    def uses(self) -> frozenset[str]:
        own = {"condition_tokens", "condition_mask"} if self.condition_mixer is not None else set()
        return self.sequence_mixer.uses | own

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> tuple[Grid, Aux]:
        mixer_key, drop_key, *keys = (None,) * 4 if key is None else jr.split(key, 4)

        def mix(h: Grid) -> tuple[None, Grid]:
            y = self.sequence_mixer(h, mixer_key, context=context)
            norm = self.response_norm
            return None, y if norm is None else norm(y, context=context)

        _, x = self._around(mix, self.sequence_norm, self.sequence_scale, x, drop_key)
        return self._finish(x, keys, context)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> PyTree:
        return self._recurrent().init_state(max_length, dtype)

    def prefill(
        self, state: PyTree, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Signal]:
        return self._advance(self._recurrent().prefill, state, x, context)

    def step(
        self, state: PyTree, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Frame]:
        return self._advance(self._recurrent().step, state, x, context)

    @property
    def complexity(self) -> str:
        others = (self.condition_mixer, self.channel_mixer)
        known = (mixer.complexity for mixer in others if mixer is not None)
        return total(self.sequence_mixer.complexity, "O(L · d)", *known)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        positions = math.prod(spatial_dims)
        count = self.sequence_mixer.flop_count(spatial_dims, inference)
        if self.condition_mixer is not None:
            count += self.condition_mixer.flop_count(spatial_dims, inference)
        others = (self.response_norm, self.condition_norm, self.channel_norm, self.channel_mixer)
        for part in (self.sequence_norm, *others):
            count += 0 if part is None else part.flop_count(positions, inference)
        return count

    def _recurrent(self) -> AbstractRecurrentMixer:
        if self.response_norm is not None:
            raise ValueError(
                "`ResidualBlockConfig(response_norm=…)` is about whole examples, so this block cannot "
                "advance step by step. Leave it out."
            )
        return recurrent(self.sequence_mixer)

    def _advance(self, advance: Callable, state, x, context):
        mix = lambda h: advance(state, h, context=context)
        state, x = self._around(mix, self.sequence_norm, self.sequence_scale, x, None)
        return state, self._finish(x, (None, None), context)[0]

    def _finish(self, x, keys, context: SequenceContext | None):
        x = self._read_tokens(x, keys[1], context)
        return self._mix_channels(x, keys[0], context)

    def _read_tokens(self, x, key: PRNGKeyArray | None, context: SequenceContext | None):
        mixer, norm = self.condition_mixer, self.condition_norm
        if mixer is None or norm is None:
            return x
        tokens = None if context is None else context.condition_tokens
        if context is None or tokens is None:
            raise ValueError(
                "`ResidualBlockConfig(condition_mixer=…)` reads `context.condition_tokens` of shape "
                f"(tokens, {mixer.token_features}). Received None. Give them in the `SequenceContext`."
            )
        mask = context.condition_mask
        read = lambda h: (None, mixer(h, tokens, context=context, token_mask=mask))
        return self._around(read, norm, self.condition_scale, x, key)[1]

    def _mix_channels(self, x, key: PRNGKeyArray | None, context: SequenceContext | None):
        channel_mixer, norm = self.channel_mixer, self.channel_norm
        if channel_mixer is None or norm is None:
            return x, no_aux()
        mixer_key, drop_key = (None, None) if key is None else jr.split(key)

        def mix(h):
            y, aux = mix_channels(channel_mixer, h, mixer_key, context)
            return aux, y

        aux, x = self._around(mix, norm, self.channel_scale, x, drop_key)
        return x, aux

    def _around(self, mix: Callable, norm: AbstractNorm, scale, x, key: PRNGKeyArray | None):
        """`mix` within its norm, layer scale, dropout and residual connection.

        `mix` returns something beside the branch's values, which is passed on before the sum.
        """
        position = self.config.norm_position
        h = norm(x) if position == "pre" else x
        if self.config.compute_dtype != "input":
            h = h.astype(self.config.compute_dtype)
        beside, y = mix(h)
        y = y.astype(x.dtype)
        y = norm(y) if position == "branch" else y
        y = y if scale is None else y * scale.astype(x.dtype)
        y = y if key is None else self._drop(y, key)
        return beside, norm(x + y) if position == "post" else x + y

    def _drop(self, y: Float[Array, "*time features"], key: PRNGKeyArray):
        """Dropout and drop path, scaled to keep the mean."""
        element_key, path_key = jr.split(key)
        if self.config.dropout > 0:
            y = keep(y, self.config.dropout, jr.uniform(element_key, y.shape))
        if self.config.drop_path > 0:
            y = keep(y, self.config.drop_path, jr.uniform(path_key))
        return y


def _layer_scale(cfg: ResidualBlockConfig, in_features: int) -> Float[Array, " features"] | None:
    return None if cfg.layer_scale is None else constant(cfg.layer_scale, (in_features,))

"""Adaptive block: a condition shifts, scales and gates both branches (AdaLN-Zero,
https://arxiv.org/abs/2212.09748).

    shift, scale, gate, shift', scale', gate' = W silu(c) + b               W = 0, b = 0 at first
    x = x + gate  ⊙ sequence_mixer((1 + scale) ⊙ norm(x) + shift)
    x = x + gate' ⊙ channel_mixer((1 + scale') ⊙ norm(x) + shift')

where c is `context.condition`. A fresh block is the identity.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..channel_mixers import (
    AbstractChannelMixer,
    AbstractChannelMixerConfig,
    AbstractRoutedChannelMixer,
    MLPConfig,
)
from ..complexity import total
from ..config import require, require_positive
from ..context import SequenceContext
from ..initializers import constant, split
from ..norms import AbstractNorm, AbstractNormConfig, LayerNormConfig
from ..precision import linear, upcast
from ..sequence_mixers import AbstractSequenceMixer, AbstractSequenceMixerConfig
from ..types import Aux, Frame, Grid, Signal
from .base import AbstractBlock, AbstractBlockConfig, keep, mix_channels, recurrent


@dataclass(frozen=True)
class AdaptiveBlockConfig(AbstractBlockConfig):
    """A sequence mixer and a channel mixer that a condition modulates.

    - `sequence_mixer`: what mixes along time, or over a grid. It sees the condition, too.
    - `condition_features`: width of `context.condition`.
    - `channel_mixer`: what acts on single positions.
    - `norm`: before each; its own scale may be left to the condition.
    - `dropout`: probability that a scalar of a branch's output is dropped in training.
    """

    sequence_mixer: AbstractSequenceMixerConfig
    condition_features: int
    channel_mixer: AbstractChannelMixerConfig = MLPConfig()
    norm: AbstractNormConfig = LayerNormConfig()
    dropout: float = 0.0

    def __post_init__(self):
        require_positive(self, "condition_features")
        require(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def build(self, in_features: int, key: PRNGKeyArray) -> "AdaptiveBlock":
        return AdaptiveBlock(in_features, self, key)


class AdaptiveBlock(AbstractBlock):
    """Sequence mixer, then channel mixer, as the condition says.

    The state is the sequence mixer's.
    """

    config: AdaptiveBlockConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    sequence_norm: AbstractNorm
    sequence_mixer: AbstractSequenceMixer
    channel_norm: AbstractNorm
    channel_mixer: AbstractChannelMixer | AbstractRoutedChannelMixer
    condition_proj: Float[Array, "six_features condition"]  # W
    condition_bias: Float[Array, " six_features"]  # b

    def __init__(self, in_features: int, cfg: AdaptiveBlockConfig, key: PRNGKeyArray):
        sequence_key, channel_key, norm_key, second_norm_key = split(key, 4)
        self.config = cfg
        self.in_features = in_features
        self.sequence_norm = cfg.norm.build(in_features, norm_key)
        self.sequence_mixer = cfg.sequence_mixer.build(in_features, sequence_key)
        self.channel_norm = cfg.norm.build(in_features, second_norm_key)
        self.channel_mixer = cfg.channel_mixer.build(in_features, channel_key)
        self.condition_proj = constant(0, (6 * in_features, cfg.condition_features))
        self.condition_bias = constant(0, (6 * in_features,))

    @property
    def causal(self) -> bool:
        return self.sequence_mixer.causal

    @property
    def uses(self) -> frozenset[str]:
        return self.sequence_mixer.uses | {"condition"}

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> tuple[Grid, Aux]:
        mixer_key, drop_key, channel_key = (None,) * 3 if key is None else jr.split(key, 3)
        shift, scale, gate, *channel = self._modulation(x, context)
        h = _modulate(self.sequence_norm(x), shift, scale)
        y = self.sequence_mixer(h, mixer_key, context=context)
        x = x + gate * self._drop(y, drop_key)
        return self._mix_channels(x, channel, channel_key, context)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> PyTree:
        return recurrent(self.sequence_mixer).init_state(max_length, dtype)

    def prefill(
        self, state: PyTree, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Signal]:
        return self._advance(recurrent(self.sequence_mixer).prefill, state, x, context)

    def step(
        self, state: PyTree, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[PyTree, Frame]:
        return self._advance(recurrent(self.sequence_mixer).step, state, x, context)

    @property
    def complexity(self) -> str:
        return total(self.sequence_mixer.complexity, self.channel_mixer.complexity)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        modulation = 2 * self.condition_proj.size
        return (
            self.sequence_mixer.flop_count(spatial_dims, inference)
            + self.channel_mixer.flop_count(math.prod(spatial_dims), inference)
            + self.sequence_norm.flop_count(math.prod(spatial_dims), inference)
            + self.channel_norm.flop_count(math.prod(spatial_dims), inference)
            + (modulation if inference else 3 * modulation)
        )

    def _advance(self, advance: Callable, state, x, context):
        shift, scale, gate, *channel = self._modulation(x, context)
        h = _modulate(self.sequence_norm(x), shift, scale)
        state, y = advance(state, h, context=context)
        return state, self._mix_channels(x + gate * y, channel, None, context)[0]

    def _mix_channels(self, x, modulation, key: PRNGKeyArray | None, context):
        shift, scale, gate = modulation
        mixer_key, drop_key = (None, None) if key is None else jr.split(key)
        h = _modulate(self.channel_norm(x), shift, scale)
        y, aux = mix_channels(self.channel_mixer, h, mixer_key, context)
        return x + gate * self._drop(y, drop_key), aux

    def _modulation(self, x: Array, context: SequenceContext | None) -> list[Array]:
        """Shift, scale and gate of both branches, in the dtype of `x`."""
        condition = None if context is None else context.condition
        width = self.config.condition_features
        if condition is None or condition.shape != (width,):
            came = None if condition is None else condition.shape
            raise ValueError(
                f"`AdaptiveBlock` is modulated by `context.condition`, a vector of shape ({width},). "
                f"Received {came}. Give it in the `SequenceContext`, one for each example."
            )
        values = linear(jax.nn.silu(upcast(condition)), self.condition_proj, self.condition_bias)
        return jnp.split(values.astype(x.dtype), 6)

    def _drop(self, y: Array, key: PRNGKeyArray | None) -> Array:
        rate = self.config.dropout
        if key is None or rate == 0:
            return y
        return keep(y, rate, jr.uniform(key, y.shape))


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
    return x * (1 + scale) + shift

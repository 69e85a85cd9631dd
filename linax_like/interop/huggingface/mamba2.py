"""Mamba-2 (https://arxiv.org/abs/2405.21060)."""

import math
from typing import Any

import numpy as np

from ...blocks import AbstractBlockConfig
from ...models import LanguageModelConfig
from ...sequence_mixers import Mamba2SequenceMixer, Mamba2SequenceMixerConfig
from .architecture import Architecture, Row, row, SHORT_CONV
from .llama import build, require_blocks
from .mamba import canonical, OUTER, recurrent_from, shared_from, shared_to
from .options import Options


_LAYER = (
    row("sequence_norm/weight", "norm.weight"),
    row("sequence_mixer/in_proj", "mixer.in_proj.weight"),  # z, x, B, C, δ
    row("sequence_mixer/in_bias", "mixer.in_proj.bias"),
    row("sequence_mixer/short_weight", "mixer.conv1d.weight", SHORT_CONV),
    row("sequence_mixer/short_bias", "mixer.conv1d.bias"),
    row("sequence_mixer/log_decay", "mixer.A_log"),
    row("sequence_mixer/dt_bias", "mixer.dt_bias"),
    row("sequence_mixer/skip", "mixer.D"),
    row("sequence_mixer/norm_weight", "mixer.norm.weight"),
    row("sequence_mixer/out_proj", "mixer.out_proj.weight"),
    row("sequence_mixer/out_bias", "mixer.out_proj.bias"),
)
# Configs hold finite numbers alone, and no step size is above this one.
_UNLIMITED = float(np.finfo(np.float32).max)


def layer(block: AbstractBlockConfig) -> tuple[Row, ...]:
    return _LAYER


def config_from(options: Options) -> LanguageModelConfig:
    features, expand = options.take("hidden_size", int), options.take("expand", int, 2)
    heads, head_dim = options.take("num_heads", int, 128), options.take("head_dim", int, 64)
    if heads * head_dim != expand * features:
        raise ValueError(
            f"`config.json`: `num_heads` times `head_dim` is {heads * head_dim}, but must be `expand` "
            f"times `hidden_size`, {expand * features}."
        )
    options.ignore("chunk_size", "time_step_rank", "norm_before_gate")  # the gate is first
    mixer = Mamba2SequenceMixerConfig(
        state_dim=options.take("state_size", int, 128),
        expand=expand,
        head_dim=head_dim,
        num_groups=options.take("n_groups", int, 8),
        dt_limits=_limits_from(options.take("time_step_limit", list, [0.0, math.inf])),
        norm_eps=options.take("layer_norm_epsilon", float, 1e-5),
        **shared_from(options),
    )
    return recurrent_from(options, mixer, tied=False)


def _limits_from(limits: list) -> tuple[float, float] | None:
    if len(limits) != 2 or not all(isinstance(limit, int | float) for limit in limits):
        raise ValueError(f"`config.json`: `time_step_limit` must be two numbers, not {limits!r}.")
    low, high = float(limits[0]), min(float(limits[1]), _UNLIMITED)
    return None if (low, high) == (0.0, _UNLIMITED) else (low, high)


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    block = require_blocks(config)[0]
    mixer = build(block.sequence_mixer, config.features, Mamba2SequenceMixer)
    low, high = mixer.config.dt_limits or (0.0, _UNLIMITED)
    return shared_to(config, mixer.config) | {
        "num_heads": mixer.num_heads,
        "head_dim": mixer.head_dim,
        "n_groups": mixer.config.num_groups,
        "time_step_limit": [low, math.inf if high >= _UNLIMITED else high],
        "chunk_size": mixer.config.chunk,
    }


MAMBA2 = Architecture(
    "mamba2",
    "Mamba2ForCausalLM",
    config_from,
    config_to,
    OUTER,
    "backbone.layers",
    layer,
    canonical,
)

"""Qwen3 (https://arxiv.org/abs/2505.09388): Llama with normalised queries and keys."""

import dataclasses
from typing import Any

from ...blocks import ResidualBlockConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from ...sequence_mixers import AttentionSequenceMixerConfig
from .architecture import Architecture
from .llama import (
    attention_from,
    attention_to,
    feed_forward_from,
    feed_forward_to,
    layer,
    model_from,
    model_to,
    OUTER,
    require_blocks,
    require_norm,
)
from .options import Options


def config_from(options: Options) -> LanguageModelConfig:
    attention = attention_from(options, 10000.0, qk_norm=True, head_dim=128)
    hidden = options.take("intermediate_size", int)
    mlp = feed_forward_from(options, "hidden_act", hidden, bias=False)
    norm = RMSNormConfig(options.take("rms_norm_eps", float, 1e-6))
    layers = [
        ResidualBlockConfig(dataclasses.replace(attention, window=window), mlp, norm)
        for window in windows_from(options)
    ]
    return model_from(options, layers, norm, tied=False)


def windows_from(options: Options) -> list[int | None]:
    """How far each layer sees."""
    depth = options.take("num_hidden_layers", int)
    window = options.take("sliding_window", int, None)
    window = window if options.take("use_sliding_window", bool, False) else None
    first = options.take("max_window_layers", int, depth)
    local = [window is not None and i >= first for i in range(depth)]
    kinds = ["sliding_attention" if here else "full_attention" for here in local]
    kinds = options.take("layer_types", list, kinds)
    choices = {"full_attention": None, "sliding_attention": window}
    wrong = [kind for kind in kinds if kind not in choices]
    if wrong or len(kinds) != depth:
        raise ValueError(
            f"`config.json`: `layer_types` must name {depth} layers of {' or '.join(choices)}. "
            f"Received {kinds!r:.200}."
        )
    return [choices[kind] for kind in kinds]


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    blocks, features = require_blocks(config), config.features
    activation, hidden, _ = feed_forward_to(blocks[0].channel_mixer, features)
    return (
        model_to(config)
        | attention_to(blocks[0].sequence_mixer, features)
        | _windows_to(blocks)
        | {
            "hidden_act": activation,
            "intermediate_size": hidden,
            "rms_norm_eps": require_norm(blocks[0].norm).eps,
        }
    )


def _windows_to(blocks: tuple[ResidualBlockConfig, ...]) -> dict[str, Any]:
    mixers = (block.sequence_mixer for block in blocks)
    windows = [m.window if isinstance(m, AttentionSequenceMixerConfig) else None for m in mixers]
    known = [window for window in windows if window is not None]
    return {
        "use_sliding_window": bool(known),
        "sliding_window": known[0] if known else None,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
    }


QWEN3 = Architecture(
    "qwen3", "Qwen3ForCausalLM", config_from, config_to, OUTER, "model.layers", layer
)

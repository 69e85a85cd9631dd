"""Qwen3 (https://arxiv.org/abs/2505.09388): Llama with normalised queries and keys."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...blocks import ResidualBlockConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from ...sequence_mixers import AttentionSequenceMixerConfig
from . import llama
from .architecture import Architecture
from .options import Options


def config_from(options: Options) -> LanguageModelConfig:
    attention = llama.attention_from(options, options.rope(10000.0), qk_norm=True, head_dim=128)
    mlp = llama.mlp_from(options, bias=False)
    norm = RMSNormConfig(options.take("rms_norm_eps", float, 1e-6))
    depth = options.take("num_hidden_layers", int)
    first = options.take("max_window_layers", int, 28, least=0)
    layers = [
        ResidualBlockConfig(dataclasses.replace(attention, window=window), mlp, norm)
        for window in windows_from(options, [i >= first for i in range(depth)])
    ]
    return llama.model_from(options, layers, norm, tied=False)


def windows_from(options: Options, local: list[bool]) -> list[int | None]:
    """How far each layer sees.

    - `local`: which layers have a window, if there is one and the file does not say.
    """
    window = options.take("sliding_window", int, None)
    window = window if options.take("use_sliding_window", bool, False) else None
    default = ["sliding_attention" if here and window else "full_attention" for here in local]
    kinds = options.take("layer_types", list, default)
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != len(local) or any(kind not in known for kind in kinds):
        raise ValueError(
            f"`config.json`: `layer_types` must name {len(local)} layers of {' or '.join(known)}. "
            f"Received {kinds!r:.200}."
        )
    return [known[kind] for kind in kinds]


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    mixers = attention_configs(config)
    return llama.decoder_to(config, mixers[0]) | windows_to(mixers)


def attention_configs(config: LanguageModelConfig) -> list[AttentionSequenceMixerConfig]:
    """What mixes along time in each layer.

    **Raises:** `ValueError` if it is not attention everywhere.
    """
    mixers = [block.sequence_mixer for block in llama.require_blocks(config)]
    attention = [mixer for mixer in mixers if isinstance(mixer, AttentionSequenceMixerConfig)]
    if len(attention) < len(mixers):
        raise ValueError("it has sequence mixers that are not attention")
    return attention


def windows_to(mixers: Sequence[AttentionSequenceMixerConfig]) -> dict[str, Any]:
    """The options that `windows_from` reads."""
    windows = [mixer.window for mixer in mixers]
    known = [window for window in windows if window is not None]
    return {
        "use_sliding_window": bool(known),
        "sliding_window": known[0] if known else None,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
    }


QWEN3 = Architecture(
    "qwen3", "Qwen3ForCausalLM", config_from, config_to, llama.OUTER, "model.layers", llama.layer
)

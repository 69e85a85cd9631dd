"""SmolLM3: Llama without rotary positions in every fourth layer (https://arxiv.org/abs/2501.18795)."""

import dataclasses
from typing import Any

from ...blocks import ResidualBlockConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from . import llama
from .architecture import Architecture
from .options import Options
from .qwen3 import attention_configs, windows_from, windows_to


def config_from(options: Options) -> LanguageModelConfig:
    turning = llama.attention_from(options, options.rope(2000000.0))
    still = dataclasses.replace(turning, rope_base=None, rope_fraction=1.0, rope_scaling=None)
    mlp = llama.mlp_from(options, options.take("mlp_bias", bool, False))
    norm = RMSNormConfig(options.take("rms_norm_eps", float, 1e-6))
    options.ignore("max_window_layers")
    turns = _turns_from(options)
    windows = windows_from(options, [not turn for turn in turns])
    mixers = (
        dataclasses.replace(turning if turn else still, window=window)
        for turn, window in zip(turns, windows, strict=True)
    )
    layers = [ResidualBlockConfig(mixer, mlp, norm) for mixer in mixers]
    return llama.model_from(options, layers, norm, tied=True)


def _turns_from(options: Options) -> list[bool]:
    """Whether each layer has rotary positions: the file's 1 for yes."""
    depth = options.take("num_hidden_layers", int)
    interval = options.take("no_rope_layer_interval", int, 4)
    turns = options.take(
        "no_rope_layers", list, [int((i + 1) % interval != 0) for i in range(depth)]
    )
    if len(turns) != depth or not set(turns) <= {0, 1}:
        raise ValueError(
            f"`config.json`: `no_rope_layers` must be {depth} times 0 or 1, not {turns!r:.200}."
        )
    return [bool(turn) for turn in turns]


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    mixers = attention_configs(config)
    turns = [mixer.rope_base is not None for mixer in mixers]
    turning = mixers[turns.index(True)] if any(turns) else mixers[0]
    return (
        llama.decoder_to(config, turning)
        | llama.mlp_bias_to(config)
        | windows_to(mixers)
        | {"no_rope_layers": [int(turn) for turn in turns]}
    )


SMOLLM3 = Architecture(
    "smollm3",
    "SmolLM3ForCausalLM",
    config_from,
    config_to,
    llama.OUTER,
    "model.layers",
    llama.layer,
)

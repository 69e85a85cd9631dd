"""Mamba (https://arxiv.org/abs/2312.00752) and Falcon Mamba (https://arxiv.org/abs/2410.05355)."""

import dataclasses
from typing import Any

from ...blocks import AbstractBlockConfig, ResidualBlockConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from ...sequence_mixers import (
    AbstractSequenceMixerConfig,
    MambaSequenceMixer,
    MambaSequenceMixerConfig,
)
from .architecture import Architecture, Row, row, SHORT_CONV
from .llama import build, model_from, model_to, require_blocks, require_norm
from .options import Options


OUTER = (
    row("embedding/table", "backbone.embeddings.weight"),
    row("stack/final_norm/weight", "backbone.norm_f.weight"),
    row("head/weight", "lm_head.weight"),
)
_LAYER = (
    row("sequence_norm/weight", "norm.weight"),
    row("sequence_mixer/in_proj", "mixer.in_proj.weight"),  # u, then the gate
    row("sequence_mixer/in_bias", "mixer.in_proj.bias"),
    row("sequence_mixer/short_weight", "mixer.conv1d.weight", SHORT_CONV),
    row("sequence_mixer/short_bias", "mixer.conv1d.bias"),
    row("sequence_mixer/select_proj", "mixer.x_proj.weight"),  # δ, B, C
    row("sequence_mixer/dt_proj", "mixer.dt_proj.weight"),
    row("sequence_mixer/dt_bias", "mixer.dt_proj.bias"),
    row("sequence_mixer/log_decay", "mixer.A_log"),
    row("sequence_mixer/skip", "mixer.D"),
    row("sequence_mixer/out_proj", "mixer.out_proj.weight"),
    row("sequence_mixer/out_bias", "mixer.out_proj.bias"),
)


def layer(block: AbstractBlockConfig) -> tuple[Row, ...]:
    return _LAYER


def canonical(name: str) -> str:
    """The first release calls the table otherwise."""
    return name.replace("backbone.embedding.", "backbone.embeddings.")


def config_from(options: Options) -> LanguageModelConfig:
    features = options.take("hidden_size", int)
    expand = options.take("expand", int, 2)
    inner = options.take("intermediate_size", int, expand * features)
    if inner % features:
        raise ValueError(
            f"`config.json`: `intermediate_size` is {inner}, but here it must be a multiple of "
            f"`hidden_size`, {features}."
        )
    falcon = options.model_type == "falcon_mamba"
    options.ignore("use_mambapy", "use_falcon_mambapy", "use_associative_scan")
    options.ignore("time_step_scale", "time_step_init_scheme")
    options.ignore("d_model", "d_inner", "n_layer", "fused_add_norm", "pad_vocab_size_multiple")
    options.demand("ssm_cfg", {})
    mixer = MambaSequenceMixerConfig(
        state_dim=options.take("state_size", int, 16),
        expand=inner // features,
        dt_rank=options.take("time_step_rank", int, -(-features // 16)),
        select_norm_eps=options.take("mixer_rms_eps", float, 1e-6) if falcon else None,
        **shared_from(options),
    )
    return recurrent_from(options, mixer, tied=True)


def shared_from(options: Options) -> dict[str, Any]:
    """The fields that the mixers of Mamba and Mamba-2 have in common."""
    options.demand("hidden_act", "silu", "swish")
    options.demand("rms_norm", True)
    options.ignore("rescale_prenorm_residual")
    return {
        "short_width": options.take("conv_kernel", int, 4),
        "dt_min": options.take("time_step_min", float, 0.001),
        "dt_max": options.take("time_step_max", float, 0.1),
        "dt_floor": options.take("time_step_floor", float, 1e-4),
        "short_bias": options.take("use_conv_bias", bool, True),
        "proj_bias": options.take("use_bias", bool, False),
    }


def recurrent_from(
    options: Options, mixer: AbstractSequenceMixerConfig, tied: bool
) -> LanguageModelConfig:
    """The model whose layers are this mixer alone.

    With `residual_in_fp32` the residual stream is float32, whatever the mixers compute in.
    """
    norm = RMSNormConfig(options.take("layer_norm_epsilon", float, 1e-5))
    wide = options.take("residual_in_fp32", bool, True)
    low = options.dtype == "bfloat16"
    compute = "bfloat16" if low and wide else "input"
    block = ResidualBlockConfig(mixer, None, norm, compute_dtype=compute)
    layers = (block,) * options.take("num_hidden_layers", int)
    dtype = "bfloat16" if low and not wide else "float32"
    return dataclasses.replace(model_from(options, layers, norm, tied), dtype=dtype)


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    block = require_blocks(config)[0]
    mixer = build(block.sequence_mixer, config.features, MambaSequenceMixer)
    options = shared_to(config, mixer.config) | {
        "intermediate_size": len(mixer.skip),
        "time_step_rank": mixer.dt_proj.shape[1],
    }
    eps = mixer.config.select_norm_eps
    return options if eps is None else options | {"mixer_rms_eps": eps}


def shared_to(config: LanguageModelConfig, cfg: Any) -> dict[str, Any]:
    """The options of Mamba and Mamba-2 alike."""
    block = require_blocks(config)[0]
    return model_to(config) | {
        "state_size": cfg.state_dim,
        "expand": cfg.expand,
        "conv_kernel": cfg.short_width,
        "time_step_min": cfg.dt_min,
        "time_step_max": cfg.dt_max,
        "time_step_floor": cfg.dt_floor,
        "use_conv_bias": cfg.short_bias,
        "use_bias": cfg.proj_bias,
        "layer_norm_epsilon": require_norm(block.norm).eps,
        "residual_in_fp32": config.dtype == "float32",
        "hidden_act": "silu",
    }


MAMBA = Architecture(
    "mamba", "MambaForCausalLM", config_from, config_to, OUTER, "backbone.layers", layer, canonical
)
FALCON_MAMBA = Architecture(
    "falcon_mamba",
    "FalconMambaForCausalLM",
    config_from,
    config_to,
    OUTER,
    "backbone.layers",
    layer,
    canonical,
)

"""Qwen3.5, its text model: gated DeltaNet, and gated attention in every fourth layer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...blocks import AbstractBlockConfig, ResidualBlockConfig
from ...channel_mixers import AbstractChannelMixerConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from . import llama
from .architecture import Architecture, Row, row, SHORT_CONV
from .gated_hybrid import (
    delta_net_from,
    delta_net_to,
    is_linear,
    kinds_from,
    kinds_to,
    LINEAR,
    mixers_of,
    RECURRENCE,
    rows_by_head,
    stated,
)
from .options import Options, rope_parameters


DELTA_NET = RECURRENCE + (
    row("sequence_mixer/short_weight", "linear_attn.conv1d.weight", SHORT_CONV),
    row("sequence_mixer/norm_weight", "linear_attn.norm.weight"),
    row("sequence_mixer/out_proj", "linear_attn.out_proj.weight"),
)
_PROJECTIONS = tuple(
    row(f"sequence_mixer/{ours}", f"linear_attn.{theirs}.weight")
    for ours, theirs in (
        ("qkv_proj", "in_proj_qkv"),
        ("gate_proj", "in_proj_z"),
        ("decay_proj", "in_proj_a"),
        ("beta_proj", "in_proj_b"),
    )
)


def layer(block: AbstractBlockConfig) -> tuple[Row, ...]:
    """The rows of a layer, by what mixes along time in it."""
    mixer = DELTA_NET + _PROJECTIONS if is_linear(block) else attention_rows(block)
    return llama.NORMS + mixer + llama.feed_forward_rows()


def attention_rows(block: Any) -> tuple[Row, ...]:
    """The rows of attention whose queries and gates are one tensor."""
    head = stated(block.sequence_mixer, "head_dim")
    heads = stated(block.sequence_mixer, "num_heads")
    return tuple(
        r for r in llama.attention_rows() if not r.disk[0].startswith("self_attn.q_proj")
    ) + tuple(
        Row(
            (f"sequence_mixer/q_{kind}", f"sequence_mixer/gate_{kind}"),
            (f"self_attn.q_proj.{theirs}",),
            rows_by_head(heads, (head, head)),
        )
        for kind, theirs in (("proj", "weight"), ("bias", "bias"))
    )


def config_from(options: Options) -> LanguageModelConfig:
    options.demand("attn_output_gate", True)
    options.ignore("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mamba_ssm_dtype")
    mlp = llama.mlp_from(options, bias=False)
    return hybrid_from(options, [mlp] * options.take("num_hidden_layers", int))


def hybrid_from(
    options: Options, channel_mixers: Sequence[AbstractChannelMixerConfig]
) -> LanguageModelConfig:
    """The model of linear and attention layers, with these channel mixers."""
    options.demand("hidden_act", "silu")  # of the short convolution and of its gate, too
    eps = options.take("rms_norm_eps", float, 1e-6)
    norm = RMSNormConfig(eps, zero_centered=True)
    linear = delta_net_from(options, (16, 128, 32, 128), eps, negative_eigenvalues=False)
    # Axes of images turn differently, but those of text all alike.
    rope = options.rope(10000.0, 0.25, ignore=("mrope_section", "mrope_interleaved"))
    attention = llama.attention_from(options, rope, qk_norm=True, head_dim=256)
    attention = dataclasses.replace(attention, norm=norm, output_gate=True)
    layers = [
        ResidualBlockConfig(linear if kind == LINEAR else attention, channel_mixer, norm)
        for kind, channel_mixer in zip(kinds_from(options), channel_mixers, strict=True)
    ]
    return llama.model_from(options, layers, norm, tied=False)


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    _, attention = mixers_of(llama.require_blocks(config))
    return llama.decoder_to(config, attention) | hybrid_to(config)


def hybrid_to(config: LanguageModelConfig) -> dict[str, Any]:
    """The options that `hybrid_from` reads."""
    blocks = llama.require_blocks(config)
    linear, attention = mixers_of(blocks)
    return (
        llama.model_to(config)
        | llama.attention_to(attention, config.features)
        | delta_net_to(linear)
        | kinds_to(blocks)
        | {
            "hidden_act": "silu",
            "rms_norm_eps": llama.require_norm(blocks[0].norm).eps,
            "rope_parameters": {"partial_rotary_factor": 1.0} | rope_parameters(attention),
        }
    )


def canonical(name: str) -> str | None:
    """Names of files that hold more than the text model; what predicts further tokens is left out."""
    if name.startswith(("mtp.", "model.visual.")):
        return None
    return name.replace("model.language_model.", "model.", 1)


QWEN3_5 = Architecture(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    config_from,
    config_to,
    llama.OUTER,
    "model.layers",
    layer,
    canonical,
)

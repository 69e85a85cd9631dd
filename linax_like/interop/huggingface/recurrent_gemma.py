"""RecurrentGemma (https://arxiv.org/abs/2404.07839): two layers of RG-LRU, one of local attention."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from ...blocks import AbstractBlockConfig, ResidualBlockConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from ...sequence_mixers import (
    AttentionSequenceMixerConfig,
    RGLRUSequenceMixer,
    RGLRUSequenceMixerConfig,
)
from .architecture import Architecture, BLOCKS, Row, row, SHORT_CONV
from .llama import (
    attention_from,
    attention_rows,
    attention_to,
    build,
    feed_forward_from,
    feed_forward_rows,
    feed_forward_to,
    model_from,
    model_to,
    require_blocks,
    require_norm,
)
from .options import Options, rope_parameters


_OUTER = (
    row("embedding/table", "model.embed_tokens.weight"),
    row("stack/final_norm/weight", "model.final_norm.weight"),
    row("head/weight", "lm_head.weight"),
)
_SHARED = (
    row("sequence_norm/weight", "temporal_pre_norm.weight"),
    row("channel_norm/weight", "channel_pre_norm.weight"),
    *feed_forward_rows("mlp_block"),
)
_RECURRENT = (
    *_SHARED,
    row("sequence_mixer/in_proj", "temporal_block.linear_x.weight"),
    row("sequence_mixer/in_bias", "temporal_block.linear_x.bias"),
    row("sequence_mixer/gate_proj", "temporal_block.linear_y.weight"),
    row("sequence_mixer/gate_bias", "temporal_block.linear_y.bias"),
    row("sequence_mixer/short_weight", "temporal_block.conv_1d.weight", SHORT_CONV),
    row("sequence_mixer/short_bias", "temporal_block.conv_1d.bias"),
    row("sequence_mixer/decay_gate_weight", "temporal_block.rg_lru.recurrent_gate_weight", BLOCKS),
    row("sequence_mixer/decay_gate_bias", "temporal_block.rg_lru.recurrent_gate_bias"),
    row("sequence_mixer/input_gate_weight", "temporal_block.rg_lru.input_gate_weight", BLOCKS),
    row("sequence_mixer/input_gate_bias", "temporal_block.rg_lru.input_gate_bias"),
    row("sequence_mixer/decay_logit", "temporal_block.rg_lru.recurrent_param"),
    row("sequence_mixer/out_proj", "temporal_block.linear_out.weight"),
    row("sequence_mixer/out_bias", "temporal_block.linear_out.bias"),
)
_ATTENTION = _SHARED + attention_rows("temporal_block")
_BLOCK_TYPES = ["recurrent", "recurrent", "attention"]


def layer(block: AbstractBlockConfig) -> tuple[Row, ...]:
    """The rows of a layer, by what mixes along time in it."""
    mixer = block.sequence_mixer if isinstance(block, ResidualBlockConfig) else None
    return _ATTENTION if isinstance(mixer, AttentionSequenceMixerConfig) else _RECURRENT


def config_from(options: Options) -> LanguageModelConfig:
    features, heads = options.take("hidden_size", int), options.take("num_attention_heads", int)
    norm = RMSNormConfig(options.take("rms_norm_eps", float, 1e-6), zero_centered=True)
    hidden = options.take("intermediate_size", int) // 2
    activation = options.demand("hidden_activation", "gelu_pytorch_tanh")  # of the gate, too
    mlp = feed_forward_from(options, activation, hidden, bias=True)
    options.demand("embeddings_scale_by_sqrt_dim", True)
    options.ignore("w_init_variance_scale", "final_w_init_variance_scale")
    recurrent = RGLRUSequenceMixerConfig(
        lru_width=options.take("lru_width", int, features),
        num_heads=heads,
        short_width=options.take("conv1d_width", int, 4),
    )
    attention = attention_from(options, options.rope(10000.0, fraction=0.5))
    attention = dataclasses.replace(
        attention,
        window=options.take("attention_window_size", int, 2048),
        bias="all" if attention.bias == "all" else "out",
        norm=RMSNormConfig(),  # there is none
    )
    mixers = {"recurrent": recurrent, "attention": attention}
    blocks = {kind: ResidualBlockConfig(mixer, mlp, norm) for kind, mixer in mixers.items()}
    layers = [blocks[kind] for kind in _kinds_from(options)]
    config = model_from(options, layers, norm, tied=True)
    embedding = dataclasses.replace(config.embedding, scale=embedding_scale(features))
    cap = options.take("logits_soft_cap", float, 30.0)
    head = dataclasses.replace(config.head, soft_cap=cap)
    return dataclasses.replace(config, embedding=embedding, head=head)


def embedding_scale(features: int) -> float:
    """The root of the width, which is rounded to bfloat16 in these models."""
    return float(jnp.bfloat16(math.sqrt(features)))


def _kinds_from(options: Options) -> list[str]:
    """What mixes along time, layer by layer."""
    kinds = options.take("block_types", list, _BLOCK_TYPES)
    if not kinds or not set(kinds) <= set(_BLOCK_TYPES):
        raise ValueError(
            f"`config.json`: `block_types` must be a list of 'recurrent' and 'attention', not {kinds!r}."
        )
    return [kinds[i % len(kinds)] for i in range(options.take("num_hidden_layers", int))]


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    blocks, features = require_blocks(config), config.features
    _, hidden, _ = feed_forward_to(blocks[0].channel_mixer, features)
    mixers = [block.sequence_mixer for block in blocks]
    attention = [mixer for mixer in mixers if isinstance(mixer, AttentionSequenceMixerConfig)]
    recurrent = [mixer for mixer in mixers if isinstance(mixer, RGLRUSequenceMixerConfig)]
    if not (attention and recurrent):
        raise ValueError("it lacks layers of attention or of RG-LRU")
    local, griffin = attention[0], build(recurrent[0], features, RGLRUSequenceMixer)
    rope = {"partial_rotary_factor": 1.0} | rope_parameters(local)
    return (
        model_to(config)
        | attention_to(local, features)
        | {
            "attention_bias": local.bias == "all",
            "rope_parameters": rope,
            "attention_window_size": local.window,
            "lru_width": griffin.lru_width,
            "conv1d_width": griffin.config.short_width,
            "block_types": ["attention" if m in attention else "recurrent" for m in mixers],
            "intermediate_size": 2 * hidden,
            "hidden_activation": "gelu_pytorch_tanh",
            "rms_norm_eps": require_norm(blocks[0].norm).eps,
            "logits_soft_cap": config.head.soft_cap,
        }
    )


RECURRENT_GEMMA = Architecture(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    config_from,
    config_to,
    _OUTER,
    "model.layers",
    layer,
)

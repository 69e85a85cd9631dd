"""Llama (https://arxiv.org/abs/2407.21783) and SmolLM2; and what their relatives share with them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.random as jr

from ...blocks import AbstractBlockConfig, ResidualBlockConfig
from ...channel_mixers import AbstractChannelMixerConfig, MLP, MLPConfig
from ...channel_mixers.mlp import GatedActivation
from ...encoders import TokenEmbeddingConfig
from ...heads import LanguageModelHeadConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from ...sequence_mixers import AttentionSequenceMixer, AttentionSequenceMixerConfig
from ...stack import StackConfig
from .architecture import Architecture, Row, row
from .options import Options, rope_parameters


OUTER = (
    row("embedding/table", "model.embed_tokens.weight"),
    row("stack/final_norm/weight", "model.norm.weight"),
    row("head/weight", "lm_head.weight"),
)
NORMS = (
    row("sequence_norm/weight", "input_layernorm.weight"),
    row("channel_norm/weight", "post_attention_layernorm.weight"),
)


def attention_rows(prefix: str = "self_attn") -> tuple[Row, ...]:
    """The rows of attention."""
    return tuple(
        row(f"sequence_mixer/{ours}", f"{prefix}.{theirs}")
        for ours, theirs in (
            ("q_proj", "q_proj.weight"),
            ("q_bias", "q_proj.bias"),
            ("k_proj", "k_proj.weight"),
            ("k_bias", "k_proj.bias"),
            ("v_proj", "v_proj.weight"),
            ("v_bias", "v_proj.bias"),
            ("out_proj", "o_proj.weight"),
            ("out_bias", "o_proj.bias"),
            ("q_norm/weight", "q_norm.weight"),
            ("k_norm/weight", "k_norm.weight"),
        )
    )


def feed_forward_rows(prefix: str = "mlp") -> tuple[Row, ...]:
    """The rows of a gated feed-forward layer."""
    return tuple(
        row(f"channel_mixer/{ours}", f"{prefix}.{theirs}")
        for ours, theirs in (
            ("hidden_layers/0/weight", "up_proj.weight"),
            ("hidden_layers/0/bias", "up_proj.bias"),
            ("hidden_layers/0/gate_weight", "gate_proj.weight"),
            ("hidden_layers/0/gate_bias", "gate_proj.bias"),
            ("out_proj", "down_proj.weight"),
            ("out_bias", "down_proj.bias"),
        )
    )


_ROWS = NORMS + attention_rows() + feed_forward_rows()
ACTIVATIONS: dict[str, GatedActivation] = {
    "silu": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "relu": "reglu",
}


def layer(block: AbstractBlockConfig) -> tuple[Row, ...]:
    """The rows of a layer of attention and a gated feed-forward layer."""
    return _ROWS


def attention_from(
    options: Options,
    rope: dict[str, Any],
    *,
    qk_norm: bool = False,
    head_dim: int | None = None,
) -> AttentionSequenceMixerConfig:
    """The attention of Llama and its relatives.

    - `rope`: the fields that say how positions turn, as of `Options.rope`.
    - `head_dim`: the architecture's default; if None, what the heads make of the width.
    """
    heads = options.take("num_attention_heads", int)
    head_dim = head_dim or options.take("hidden_size", int) // heads
    return AttentionSequenceMixerConfig(
        num_heads=heads,
        num_kv_heads=options.take("num_key_value_heads", int, heads),
        head_dim=options.take("head_dim", int, head_dim),
        qk_norm=qk_norm,
        norm=RMSNormConfig(options.take("rms_norm_eps", float, 1e-6)),
        bias="all" if options.take("attention_bias", bool, False) else "none",
        **rope,
    )


def feed_forward_from(
    options: Options, activation: str, hidden: int, bias: bool
) -> AbstractChannelMixerConfig:
    """A gated feed-forward layer.

    - `activation`: one of `ACTIVATIONS`.
    - `hidden`: width of the hidden layer.
    """
    features = options.take("hidden_size", int)
    if hidden % 8:
        raise ValueError(
            f"`config.json`: the feed-forward layers have width {hidden}, but here only a multiple of 8 "
            "can be computed."
        )
    return MLPConfig(1, hidden / features, ACTIVATIONS[activation], bias)


def mlp_from(options: Options, bias: bool) -> AbstractChannelMixerConfig:
    """The feed-forward layer of Llama and its relatives."""
    activation = options.demand("hidden_act", *ACTIVATIONS)
    return feed_forward_from(options, activation, options.take("intermediate_size", int), bias)


def model_from(
    options: Options, layers: Sequence[AbstractBlockConfig], norm: RMSNormConfig, tied: bool
) -> LanguageModelConfig:
    """The model of these layers, with the embedding and the head of Llama.

    - `tied`: the default for sharing their table.
    """
    stack = dataclasses.replace(StackConfig.from_layers(layers), final_norm=norm)
    tied = options.take("tie_word_embeddings", bool, tied)
    return LanguageModelConfig(
        vocab_size=options.take("vocab_size", int),
        features=options.take("hidden_size", int),
        stack=stack,
        embedding=TokenEmbeddingConfig(init_std=0.02),
        head=LanguageModelHeadConfig(tied, scale=1.0),
        dtype="bfloat16" if options.dtype == "bfloat16" else "float32",
    )


def config_from(options: Options) -> LanguageModelConfig:
    options.demand("rope_interleaved", False)
    options.ignore("is_llama_config")
    attention = attention_from(options, options.rope(10000.0))
    mlp = mlp_from(options, options.take("mlp_bias", bool, False))
    norm = RMSNormConfig(options.take("rms_norm_eps", float, 1e-6))
    block = ResidualBlockConfig(attention, mlp, norm)
    layers = (block,) * options.take("num_hidden_layers", int)
    return model_from(options, layers, norm, tied=False)


def build(cfg: Any, features: int, kind: type) -> Any:
    """The shapes of a mixer of the given kind.

    **Raises:** `ValueError` if the config is not of that kind.
    """
    mixer = None if cfg is None else eqx.filter_eval_shape(cfg.build, features, jr.key(0))
    if not isinstance(mixer, kind):
        raise ValueError(f"it has a `{type(cfg).__name__}` where a `{kind.__name__}` belongs")
    return mixer


def require_norm(cfg: Any) -> RMSNormConfig:
    """**Raises:** `ValueError` if a norm is not of the kind that these models have."""
    if not isinstance(cfg, RMSNormConfig):
        raise ValueError(f"it has a `{type(cfg).__name__}` where a `RMSNormConfig` belongs")
    return cfg


def require_blocks(config: LanguageModelConfig) -> tuple[ResidualBlockConfig, ...]:
    """**Raises:** `ValueError` if a layer is not a residual block."""
    blocks = tuple(
        block for block in config.stack.layers if isinstance(block, ResidualBlockConfig)
    )
    if len(blocks) < len(config.stack.layers):
        raise ValueError("it has layers that are not a `ResidualBlockConfig`")
    return blocks


def model_to(config: LanguageModelConfig) -> dict[str, Any]:
    """The options that `model_from` reads."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.features,
        "num_hidden_layers": len(config.stack.layers),
        "tie_word_embeddings": config.head.tied,
    }


def attention_to(cfg: Any, features: int) -> dict[str, Any]:
    """The options that `attention_from` reads."""
    mixer = build(cfg, features, AttentionSequenceMixer)
    return {
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim,
        "attention_bias": mixer.out_bias is not None,
        "rope_parameters": rope_parameters(mixer.config),
    }


def feed_forward_to(cfg: Any, features: int) -> tuple[str, int, bool]:
    """The activation, the width of the hidden layer, and whether there are biases."""
    mixer = build(cfg, features, MLP)
    names: dict[str, str] = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if mixer.config.activation not in names:
        raise ValueError(
            f"its feed-forward layers have the activation {mixer.config.activation!r}"
        )
    return names[mixer.config.activation], mixer.out_proj.shape[1], mixer.out_bias is not None


def decoder_to(config: LanguageModelConfig, attention: Any) -> dict[str, Any]:
    """The options of Llama and its relatives, with those of one of its layers' attention."""
    block, features = require_blocks(config)[0], config.features
    activation, hidden, _ = feed_forward_to(block.channel_mixer, features)
    return (
        model_to(config)
        | attention_to(attention, features)
        | {
            "hidden_act": activation,
            "intermediate_size": hidden,
            "rms_norm_eps": require_norm(block.norm).eps,
        }
    )


def mlp_bias_to(config: LanguageModelConfig) -> dict[str, Any]:
    """The option of whether feed-forward layers have biases."""
    block = require_blocks(config)[0]
    return {"mlp_bias": feed_forward_to(block.channel_mixer, config.features)[2]}


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    block = require_blocks(config)[0]
    return decoder_to(config, block.sequence_mixer) | mlp_bias_to(config)


LLAMA = Architecture(
    "llama", "LlamaForCausalLM", config_from, config_to, OUTER, "model.layers", layer
)

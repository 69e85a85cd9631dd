"""OLMo hybrid: gated DeltaNet before the norm, and attention behind it in every fourth layer.

Names are those of the model in transformers, which reads them. Files also have others for the norms,
and convolutions cut into thirds rather than into those of queries, keys and values.
"""

import dataclasses
from typing import Any

import numpy as np

from ...blocks import ResidualBlockConfig
from ...models import LanguageModelConfig
from ...norms import RMSNormConfig
from ...sequence_mixers import AttentionSequenceMixerConfig
from . import llama
from .architecture import Architecture, Row, row, SHORT_CONV, Transform
from .gated_hybrid import (
    delta_net_from,
    delta_net_to,
    is_linear,
    kinds_from,
    kinds_to,
    LINEAR,
    mixers_of,
    RECURRENCE,
    sizes_of,
)
from .options import Options, rope_parameters


_LINEAR = (
    llama.NORMS
    + RECURRENCE
    + tuple(
        row(f"sequence_mixer/{ours}", f"linear_attn.{theirs}.weight")
        for ours, theirs in (
            ("decay_proj", "a_proj"),
            ("beta_proj", "b_proj"),
            ("gate_proj", "g_proj"),
            ("norm_weight", "o_norm"),
            ("out_proj", "o_proj"),
        )
    )
)
_ATTENTION = llama.attention_rows() + (
    row("sequence_norm/weight", "post_attention_layernorm.weight"),
    row("channel_norm/weight", "post_feedforward_layernorm.weight"),
)
_NORM_EPS = 1e-5  # of the linear layers' outputs, whatever `rms_norm_eps` is


def layer(block: Any) -> tuple[Row, ...]:
    """The rows of a layer, by what mixes along time in it."""
    mixer = _LINEAR + _joint_rows(block.sequence_mixer) if is_linear(block) else _ATTENTION
    return mixer + llama.feed_forward_rows()


def _joint_rows(cfg: Any) -> tuple[Row, ...]:
    """Queries, keys and values: one array of ours, and one tensor each."""
    heads, head, _, _ = sizes_of(cfg)
    edges = (heads * head, 2 * heads * head)
    matrix = Transform(lambda *qkv: (np.concatenate(qkv),), lambda w: tuple(np.split(w, edges)))
    short = Transform(
        lambda *qkv: SHORT_CONV.load(np.concatenate(qkv)),
        lambda w: tuple(np.split(SHORT_CONV.save(w)[0], edges)),
        recut=True,
    )
    return tuple(
        Row((f"sequence_mixer/{ours}",), tuple(f"linear_attn.{x}_{theirs}" for x in "qkv"), cut)
        for ours, theirs, cut in (
            ("qkv_proj", "proj.weight", matrix),
            ("short_weight", "conv1d.weight", short),
        )
    )


def config_from(options: Options) -> LanguageModelConfig:
    options.demand("hidden_act", "silu")  # of the short convolution, too
    options.ignore("linear_a_log_min", "linear_a_log_max")
    options.ignore("linear_dt_min", "linear_dt_max", "linear_dt_init_floor")
    norm = RMSNormConfig(options.take("rms_norm_eps", float, 1e-6))
    mlp = llama.mlp_from(options, bias=False)
    mixers = {True: _linear_from(options), False: _attention_from(options)}
    layers = [
        ResidualBlockConfig(
            mixers[kind == LINEAR], mlp, norm, norm_position="pre" if kind == LINEAR else "branch"
        )
        for kind in kinds_from(options)
    ]
    return llama.model_from(options, layers, norm, tied=False)


def _linear_from(options: Options) -> Any:
    heads = options.take("num_attention_heads", int)
    key_heads = options.take("linear_num_key_heads", int, heads)
    head = options.take(
        "linear_key_head_dim", int, 3 * options.take("hidden_size", int) // (4 * key_heads)
    )
    negative = options.take("linear_allow_neg_eigval", bool, True)
    return delta_net_from(options, (key_heads, head, heads, 2 * head), _NORM_EPS, negative)


def _attention_from(options: Options) -> AttentionSequenceMixerConfig:
    """Attention with or, as in the published models, without rotary positions."""
    options.ignore("rope_theta")  # null where there are none
    turns = options.take("rope_parameters", dict, {}).get("rope_theta") is not None
    rope: dict[str, Any] = options.rope(10000.0) if turns else {"rope_base": None}
    attention = llama.attention_from(options, rope, qk_norm=True)
    return dataclasses.replace(attention, norm_over="all")


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    blocks = llama.require_blocks(config)
    linear, attention = mixers_of(blocks)
    turning = dataclasses.replace(attention, rope_base=attention.rope_base or 10000.0)
    turns = attention.rope_base is not None
    return (
        llama.decoder_to(config, turning)
        | delta_net_to(linear)
        | kinds_to(blocks)
        | {
            "linear_allow_neg_eigval": linear.negative_eigenvalues,
            "rope_parameters": rope_parameters(attention) if turns else None,
        }
    )


def canonical(name: str) -> str | None:
    """The name of a norm in the model, for its name in a file; no file has both."""
    name = name.replace(".attention_layer_norm.", ".input_layernorm.")
    return name.replace(".feedforward_layer_norm.", ".post_attention_layernorm.")


OLMO_HYBRID = Architecture(
    "olmo_hybrid",
    "OlmoHybridForCausalLM",
    config_from,
    config_to,
    llama.OUTER,
    "model.layers",
    layer,
    canonical,
)

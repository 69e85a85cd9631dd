"""Qwen3-Next: Qwen3.5 with a mixture of experts, and projections sorted by head."""

from typing import Any

import numpy as np

from ...channel_mixers import (
    MixtureOfExperts,
    MixtureOfExpertsConfig,
)
from ...models import LanguageModelConfig
from . import llama, qwen3_5
from .architecture import Architecture, Arrays, Row, row, Transform
from .gated_hybrid import first_of, is_linear, rows_by_head, sizes_of
from .options import Options


# Our experts are one array, those of a file one tensor each.
_EXPERTS = Transform(lambda *tensors: (np.stack(tensors),), lambda array: tuple(array))
_SHARED = tuple(
    row(f"channel_mixer/{ours}", f"mlp.{theirs}.weight")
    for ours, theirs in (
        ("router", "gate"),
        ("shared/gate_proj", "shared_expert.gate_proj"),
        ("shared/up_proj", "shared_expert.up_proj"),
        ("shared/down_proj", "shared_expert.down_proj"),
        ("shared/output_gate", "shared_expert_gate"),
    )
)


def layer(block: Any) -> tuple[Row, ...]:
    """The rows of a layer, by what mixes along time and features in it."""
    linear = is_linear(block)
    mixer = _linear_rows(block.sequence_mixer) if linear else qwen3_5.attention_rows(block)
    routed = isinstance(block.channel_mixer, MixtureOfExpertsConfig)
    channel_mixer = _expert_rows(block.channel_mixer) if routed else llama.feed_forward_rows()
    return llama.NORMS + mixer + channel_mixer


def _linear_rows(cfg: Any) -> tuple[Row, ...]:
    heads, _, value_heads, _ = sizes_of(cfg)
    share = value_heads // heads
    qkvz = ("sequence_mixer/qkv_proj", "sequence_mixer/gate_proj")
    ba = ("sequence_mixer/beta_proj", "sequence_mixer/decay_proj")
    return qwen3_5.DELTA_NET + (
        Row(qkvz, ("linear_attn.in_proj_qkvz.weight",), _qkvz(cfg)),
        Row(ba, ("linear_attn.in_proj_ba.weight",), rows_by_head(heads, (share, share))),
    )


def _qkvz(cfg: Any) -> Transform:
    """Queries, keys and values are one array of ours, and gates another."""
    heads, head, value_heads, value = sizes_of(cfg)
    share = value_heads // heads * value
    by_head = rows_by_head(heads, (head, head, share, share))
    edges = (heads * head, 2 * heads * head)

    def load(tensor: np.ndarray) -> Arrays:
        *qkv, gates = by_head.load(tensor)
        return np.concatenate(qkv), gates

    def save(qkv: np.ndarray, gates: np.ndarray) -> Arrays:
        return by_head.save(*np.split(qkv, edges), gates)

    return Transform(load, save)


def _expert_rows(cfg: MixtureOfExpertsConfig) -> tuple[Row, ...]:
    return _SHARED + tuple(
        Row(
            (f"channel_mixer/{name}",),
            tuple(f"mlp.experts.{e}.{name}.weight" for e in range(cfg.num_experts)),
            _EXPERTS,
        )
        for name in ("gate_proj", "up_proj", "down_proj")
    )


def config_from(options: Options) -> LanguageModelConfig:
    options.ignore("router_aux_loss_coef", "output_router_logits")
    depth = options.take("num_hidden_layers", int)
    every = options.take("decoder_sparse_step", int, 1)
    plain = options.take("mlp_only_layers", list, [])
    experts, mlp = _experts_from(options), llama.mlp_from(options, bias=False)
    routed = [i not in plain and (i + 1) % every == 0 for i in range(depth)]
    return qwen3_5.hybrid_from(options, [experts if here else mlp for here in routed])


def _experts_from(options: Options) -> MixtureOfExpertsConfig:
    return MixtureOfExpertsConfig(
        num_experts=options.take("num_experts", int, 512),
        top_k=options.take("num_experts_per_tok", int, 10),
        expert_features=options.take("moe_intermediate_size", int, 512),
        shared_features=options.take("shared_expert_intermediate_size", int, 512),
        normalize=options.take("norm_topk_prob", bool, True),
    )


def config_to(config: LanguageModelConfig) -> dict[str, Any]:
    mixers = [block.channel_mixer for block in llama.require_blocks(config)]
    cfg = first_of(mixers, MixtureOfExpertsConfig)
    experts = llama.build(cfg, config.features, MixtureOfExperts)
    if cfg.shared_features is None:
        raise ValueError("it has no expert that every position goes through")
    if (cfg.router, cfg.shared_gate, cfg.capacity, cfg.bias_rate) != ("softmax", True, None, None):
        raise ValueError("its experts are not chosen, limited and added up as Qwen's")
    plain = [i for i, mixer in enumerate(mixers) if not isinstance(mixer, MixtureOfExpertsConfig)]
    hidden = 8
    if plain:
        _, hidden, _ = llama.feed_forward_to(mixers[plain[0]], config.features)
    return qwen3_5.hybrid_to(config) | {
        "intermediate_size": hidden,
        "decoder_sparse_step": 1,
        "mlp_only_layers": plain,
        "num_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.top_k,
        "moe_intermediate_size": experts.gate_proj.shape[1],
        "shared_expert_intermediate_size": cfg.shared_features,
        "norm_topk_prob": cfg.normalize,
    }


def canonical(name: str) -> str | None:
    """What predicts further tokens is left out."""
    return None if name.startswith("mtp.") else name


QWEN3_NEXT = Architecture(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    config_from,
    config_to,
    llama.OUTER,
    "model.layers",
    layer,
    canonical,
)

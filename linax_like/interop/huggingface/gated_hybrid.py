"""What hybrids of gated DeltaNet and attention share: Qwen3-Next, Qwen3.5 and OLMo hybrid."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ...blocks import AbstractBlockConfig, ResidualBlockConfig
from ...sequence_mixers import AttentionSequenceMixerConfig, GatedDeltaNetSequenceMixerConfig
from .architecture import Arrays, row, Transform
from .options import Options


LINEAR, FULL = "linear_attention", "full_attention"
RECURRENCE = (
    row("sequence_mixer/log_decay", "linear_attn.A_log"),
    row("sequence_mixer/dt_bias", "linear_attn.dt_bias"),
)

Mixer = TypeVar("Mixer")


def kinds_from(options: Options) -> list[str]:
    """Which layers are linear, and which have full attention; by default every fourth."""
    depth = options.take("num_hidden_layers", int)
    interval = options.take("full_attention_interval", int, 4)
    default = [FULL if (i + 1) % interval == 0 else LINEAR for i in range(depth)]
    kinds = options.take("layer_types", list, default)
    if len(kinds) != depth or not set(kinds) <= {LINEAR, FULL}:
        raise ValueError(
            f"`config.json`: `layer_types` must name {depth} layers of {LINEAR} or {FULL}. Received "
            f"{kinds!r:.200}."
        )
    return kinds


def kinds_to(blocks: Sequence[ResidualBlockConfig]) -> dict[str, Any]:
    """The option that `kinds_from` reads."""
    return {"layer_types": [LINEAR if is_linear(block) else FULL for block in blocks]}


def is_linear(block: AbstractBlockConfig) -> bool:
    mixer = block.sequence_mixer if isinstance(block, ResidualBlockConfig) else None
    return isinstance(mixer, GatedDeltaNetSequenceMixerConfig)


def delta_net_from(
    options: Options, defaults: tuple[int, int, int, int], eps: float, negative_eigenvalues: bool
) -> GatedDeltaNetSequenceMixerConfig:
    """The linear layers.

    - `defaults`: heads of keys and their size, heads of values and theirs.
    """
    heads, head, value_heads, value = defaults
    return GatedDeltaNetSequenceMixerConfig(
        num_heads=options.take("linear_num_key_heads", int, heads),
        head_dim=options.take("linear_key_head_dim", int, head),
        num_value_heads=options.take("linear_num_value_heads", int, value_heads),
        value_head_dim=options.take("linear_value_head_dim", int, value),
        short_width=options.take("linear_conv_kernel_dim", int, 4),
        negative_eigenvalues=negative_eigenvalues,
        norm_eps=eps,
    )


def delta_net_to(cfg: GatedDeltaNetSequenceMixerConfig) -> dict[str, Any]:
    """The options that `delta_net_from` reads."""
    heads, head, value_heads, value = sizes_of(cfg)
    return {
        "linear_num_key_heads": heads,
        "linear_key_head_dim": head,
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": value,
        "linear_conv_kernel_dim": cfg.short_width,
    }


def mixers_of(
    blocks: Sequence[ResidualBlockConfig],
) -> tuple[GatedDeltaNetSequenceMixerConfig, AttentionSequenceMixerConfig]:
    """The first of each kind; that the others are like it is found by reading the options back."""
    mixers = [block.sequence_mixer for block in blocks]
    return (
        first_of(mixers, GatedDeltaNetSequenceMixerConfig),
        first_of(mixers, AttentionSequenceMixerConfig),
    )


def first_of(configs: Sequence[Any], kind: type[Mixer]) -> Mixer:
    """**Raises:** `ValueError` if there is none of this kind."""
    for cfg in configs:
        if isinstance(cfg, kind):
            return cfg
    raise ValueError(f"it has no `{kind.__name__}`")


def sizes_of(cfg: Any) -> tuple[int, int, int, int]:
    """Heads of keys and their size, heads of values and theirs.

    **Raises:** `ValueError` if the config leaves any of them to be derived from the width.
    """
    names = ("num_heads", "head_dim", "num_value_heads", "value_head_dim")
    for name in names:
        stated(cfg, name)
    heads, head, value_heads, value = (getattr(cfg, name) for name in names)
    return heads, head, value_heads, value


def stated(cfg: Any, name: str) -> int:
    """**Raises:** `ValueError` if the config leaves this size to be derived from the width."""
    if getattr(cfg, name) is None:
        raise ValueError(f"its `{type(cfg).__name__}` must state its `{name}`")
    return getattr(cfg, name)


def rows_by_head(heads: int, sizes: Sequence[int]) -> Transform:
    """A tensor whose rows are sorted by head; of each head, those of one of our arrays after another.

    - `sizes`: rows of each array per head.
    """
    edges = np.cumsum(sizes)[:-1]

    def load(tensor: np.ndarray) -> Arrays:
        by_head = tensor.reshape(heads, -1, *tensor.shape[1:])
        parts = np.split(by_head, edges, axis=1)
        return tuple(part.reshape(-1, *tensor.shape[1:]) for part in parts)

    def save(*arrays: np.ndarray) -> Arrays:
        by_head = [array.reshape(heads, -1, *array.shape[1:]) for array in arrays]
        return (np.concatenate(by_head, axis=1).reshape(-1, *arrays[0].shape[1:]),)

    return Transform(load, save)

"""A sequence model from the flat arguments of Vathos: embedder, equal blocks, unembedder."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ..blocks import ResidualBlockConfig
from ..channel_mixers import AbstractChannelMixerConfig, MLPConfig
from ..config import AbstractConfig
from ..encoders import AbstractEncoderConfig, PatchEmbeddingConfig, TokenEmbeddingConfig
from ..grid_embedding import AbstractGridPositionsConfig, SinusoidalGridPositionsConfig
from ..heads import AbstractHeadConfig, LanguageModelHeadConfig
from ..norms import LayerNormConfig
from ..positions import AbstractPositionsConfig, SinusoidalPositionsConfig
from ..sequence_mixers import AbstractSequenceMixerConfig, AttentionSequenceMixerConfig
from ..stack import StackConfig
from .language_model import LanguageModelConfig
from .sequence_model import SequenceModelConfig


Options = Mapping[str, Any]
PositionsConfig = AbstractPositionsConfig | AbstractGridPositionsConfig


def sequence_model(
    vocab_size: int,
    d_model: int,
    n_layers: int,
    max_len: int = 1024,
    pos_encoder: bool | PositionsConfig | type[PositionsConfig] = False,
    embedder: type[AbstractEncoderConfig] = TokenEmbeddingConfig,
    embedder_args: Options | None = None,
    unembedder: type[AbstractHeadConfig | LanguageModelHeadConfig] = LanguageModelHeadConfig,
    unembedder_args: Options | None = None,
    spatial_mixer: type[AbstractSequenceMixerConfig] = AttentionSequenceMixerConfig,
    spatial_args: Options | None = None,
    channel_mixer: type[AbstractChannelMixerConfig] = MLPConfig,
    channel_args: Options | None = None,
    rope: bool = False,
) -> LanguageModelConfig | SequenceModelConfig:
    """Embedder, `n_layers` blocks of a spatial and a channel mixer with layer norms, unembedder.

    Types are those of configs, one's own included, and `…_args` their fields.

    - `vocab_size`: tokens, or classes.
    - `d_model`: width of the residual stream.
    - `max_len`: the longest sequence: the `max_length` of whatever has one.
    - `pos_encoder`: vectors added to what is embedded: True for sinusoidal ones, a type or a config.
    - `embedder`: of tokens; or `PatchEmbeddingConfig`, whose arguments may be `img_size`, `patch_size`
        (224 and 16 by default, one number for all axes) and `in_chans` (3), and which puts patches in
        a sequence.
    - `unembedder`: with tokens and `LanguageModelHeadConfig`, untied, it is a language model;
        otherwise a sequence model.
    - `spatial_args`: for attention, eight heads by default.
    - `channel_args`: for the MLP, one hidden layer of twice the width by default.
    - `rope`: rotary positions, in attention. Other mixers have no use for them.

    **Raises:** `ValueError` that names the argument, what came, and what is valid.
    """
    if n_layers < 1:
        raise ValueError(f"`sequence_model` needs at least one layer. Received {n_layers=}.")
    given = {"max_length": max_len}
    spatial = given | ({} if rope else {"rope_base": None})
    if spatial_mixer is AttentionSequenceMixerConfig:
        spatial["num_heads"] = 8
    channel = {"expand": 2.0} if channel_mixer is MLPConfig else {}
    block = ResidualBlockConfig(
        _build(spatial_mixer, spatial, spatial_args),
        _build(channel_mixer, channel, channel_args),
        LayerNormConfig(),
    )
    scale = 1 / math.sqrt(2 * n_layers)
    stack = StackConfig((((block,), n_layers),), final_norm=LayerNormConfig(), branch_scale=scale)
    if embedder is PatchEmbeddingConfig:
        inputs, encoder = _patches(dict(embedder_args or {}), pos_encoder, max_len)
    else:
        if pos_encoder is not False and "positions" not in _fields(embedder):
            raise ValueError(
                f"`embedder={embedder.__name__}` adds no positions: leave `pos_encoder` out, or use a "
                "mixer that knows them."
            )
        places = _positions(pos_encoder, SinusoidalPositionsConfig, given)
        token = {"positions": places, "init_std": 0.02, "scale": math.sqrt(d_model)}
        inputs, encoder = vocab_size, _build(embedder, token, embedder_args)
    head = _build(unembedder, {"tied": False}, unembedder_args)
    if isinstance(encoder, TokenEmbeddingConfig) and isinstance(head, LanguageModelHeadConfig):
        return LanguageModelConfig(vocab_size, d_model, stack, encoder, head)
    if isinstance(head, LanguageModelHeadConfig):
        raise ValueError(
            f"`unembedder=LanguageModelHeadConfig` predicts tokens, which `embedder="
            f"{embedder.__name__}` does not read. Use another one, such as `ClassificationHeadConfig`."
        )
    return SequenceModelConfig(inputs, d_model, vocab_size, stack, encoder, head)


def _build(cls: type[AbstractConfig], defaults: Options, given: Options | None) -> Any:
    """The config of this type, with those of our defaults that it has a field for."""
    own = {name: value for name, value in defaults.items() if name in _fields(cls)}
    return cls(**(own | dict(given or {})))


def _fields(cls: type[AbstractConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _positions(
    wanted: bool | PositionsConfig | type[PositionsConfig],
    usual: type[PositionsConfig],
    sizes: Options,
) -> PositionsConfig | None:
    if isinstance(wanted, bool):
        return usual() if wanted else None
    return _build(wanted, sizes, None) if isinstance(wanted, type) else wanted


def _patches(
    options: dict[str, Any],
    pos_encoder: bool | PositionsConfig | type[PositionsConfig],
    max_len: int,
) -> tuple[int, PatchEmbeddingConfig]:
    """The channels of an image, and its embedding."""
    image, patch = options.pop("img_size", 224), options.pop("patch_size", 16)
    axes = next((len(size) for size in (image, patch) if isinstance(size, tuple)), 2)
    image, patch = (s if isinstance(s, tuple) else (s,) * axes for s in (image, patch))
    channels = options.pop("in_chans", 3)
    if len(image) != len(patch) or any(size % part for size, part in zip(image, patch)):
        raise ValueError(
            f"`embedder_args`: `img_size` must be a multiple of `patch_size`. Received {image} and "
            f"{patch}."
        )
    grid = tuple(size // part for size, part in zip(image, patch, strict=True))
    if math.prod(grid) > max_len:
        raise ValueError(
            f"`sequence_model`: an image of {image} has {math.prod(grid)} patches of {patch}, above "
            f"{max_len=}. Give a larger `max_len` or larger patches."
        )
    places = _positions(pos_encoder, SinusoidalGridPositionsConfig, {"grid": grid})
    defaults = {"patch_size": patch, "positions": places, "layout": "sequence"}
    return channels, _build(PatchEmbeddingConfig, defaults, options)

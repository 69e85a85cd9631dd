"""Vision models that are known to work, as functions: `vision_model(…).build(key)`.

Their layers are written as a pattern, a letter for each: `"A"` is attention with rotary positions on
the grid, `"H"` another mixer of grids, such as Hyena.
"""

from collections.abc import Sequence

from ..blocks import AbstractBlockConfig, PatchBlockConfig, ResidualBlockConfig
from ..channel_mixers import MLPConfig
from ..encoders import PatchEmbeddingConfig, PatchMergingConfig
from ..grid_embedding import LearnedGridPositionsConfig
from ..heads import UnpatchifyHeadConfig
from ..ops.grid_conv import Boundary
from ..sequence_mixers import (
    AbstractSequenceMixerConfig,
    AttentionOperatorConfig,
    CKConvSequenceMixerConfig,
    GaussianMaskConfig,
    HyenaOperatorConfig,
    QKVSequenceMixerConfig,
)
from ..stack import StackConfig
from .hierarchical_model import HierarchicalModelConfig
from .sequence_model import SequenceModelConfig
from .vision_model import Readout, VisionModelConfig


def vision_model(
    image_size: tuple[int, ...],
    patch_size: tuple[int, ...],
    in_features: int,
    out_features: int,
    *,
    features: int = 384,
    pattern: str = "A" * 12,
    grid_mixer: AbstractSequenceMixerConfig | None = None,
    num_heads: int | None = None,
    registers: int = 4,
    readout: Readout = "class",
    drop_path: float = 0.0,
    layer_scale: float | None = 1e-4,
) -> VisionModelConfig:
    """A classifier in the manner of ViT-5: RMS norms, layer scale, registers, rotary attention.

    - `image_size`, `patch_size`: pixels along every axis; the axes may differ.
    - `in_features`, `out_features`: channels, and classes.
    - `features`: width of the residual stream.
    - `pattern`: `"A"` sees patches and tokens, `"H"` is `grid_mixer`, which sees the patches alone.
    - `grid_mixer`: by default `grid_hyena`, with the extent of the grid.
    - `num_heads`: of attention; by default heads of 64 features.
    - `registers`, `readout`: as in `VisionModelConfig`.
    - `drop_path`, `layer_scale`: as in `ResidualBlockConfig`.
    """
    if "A" not in pattern and (registers > 0 or readout != "mean"):
        raise ValueError(
            f"`vision_model(pattern={pattern!r})` has no attention, by which alone tokens see the "
            f"patches. Received registers={registers}, readout={readout!r}: take registers=0 and "
            'readout="mean", or an "A" in the pattern.'
        )
    grid = _grid(image_size, patch_size)
    grid_mixer = grid_hyena(grid) if grid_mixer is None else grid_mixer
    attention = AttentionOperatorConfig(num_heads, causal=False, qk_norm="rms", grid=grid)
    layers = [
        PatchBlockConfig(block, grid) if letter == "H" else block
        for letter, block in _blocks(pattern, attention, grid_mixer, drop_path, layer_scale)
    ]
    positions = LearnedGridPositionsConfig(grid)
    return VisionModelConfig(
        in_features=in_features,
        features=features,
        out_features=out_features,
        embedding=PatchEmbeddingConfig(patch_size, positions, layout="sequence"),
        stack=StackConfig.from_layers(layers),
        registers=registers,
        readout=readout,
    )


def hierarchical_vision_model(
    patch_size: tuple[int, ...],
    in_features: int,
    out_features: int,
    *,
    features: int = 96,
    patterns: Sequence[str] = ("AA", "AA", "AAAAAA", "AA"),
    grid_mixer: AbstractSequenceMixerConfig | None = None,
    num_heads: int | None = None,
    drop_path: float = 0.0,
    layer_scale: float | None = 1e-4,
) -> HierarchicalModelConfig:
    """A classifier of images of any size, on ever coarser grids.

    - `features`: width of the first stage, which every merging of patches doubles.
    - `patterns`: the layers of each stage.
    - The other arguments are those of `vision_model`.
    """
    attention = AttentionOperatorConfig(num_heads, causal=False, qk_norm="rms")
    stages = tuple(
        _stack(_blocks(pattern, attention, grid_mixer, drop_path, layer_scale))
        for pattern in patterns
    )
    return HierarchicalModelConfig(
        in_features=in_features,
        features=features,
        out_features=out_features,
        embedding=PatchEmbeddingConfig(patch_size),
        stages=stages,
        merging=PatchMergingConfig((2,) * len(patch_size)),
    )


def field_model(
    patch_size: tuple[int, ...],
    in_features: int,
    out_features: int,
    *,
    features: int = 128,
    pattern: str = "AAAA",
    grid_mixer: AbstractSequenceMixerConfig | None = None,
    num_heads: int | None = None,
    drop_path: float = 0.0,
    layer_scale: float | None = None,
) -> SequenceModelConfig:
    """A map of fields to fields, such as the next state of a differential equation, on any grid.

    Its `values` have the shape of the image, with `out_features` for channels. The arguments are those
    of `vision_model`.
    """
    attention = AttentionOperatorConfig(num_heads, causal=False, qk_norm="rms")
    return SequenceModelConfig(
        in_features=in_features,
        features=features,
        out_features=out_features,
        stack=_stack(_blocks(pattern, attention, grid_mixer, drop_path, layer_scale)),
        encoder=PatchEmbeddingConfig(patch_size),
        head=UnpatchifyHeadConfig(patch_size),
    )


def grid_hyena(
    extent: tuple[int, ...], boundary: Boundary = "zero", spacing: float = 1.0
) -> QKVSequenceMixerConfig:
    """Hyena on a grid, between projections.

    - `extent`, `spacing`: as in `CKConvSequenceMixerConfig`; the extent is about the size of the grid.
    - `boundary`: what lies beyond the edges.
    """
    sizes = tuple(float(size) for size in extent)
    # Windows from half a point to half of the grid.
    narrow = 0.466 / max(sizes)
    mask = GaussianMaskConfig((narrow, 0.466), (min(0.001, narrow / 2), 3.122))
    convolution = CKConvSequenceMixerConfig(
        (boundary,) * len(sizes), extent=sizes, spacing=spacing, mask=mask
    )
    return QKVSequenceMixerConfig(HyenaOperatorConfig(convolution=convolution))


def _blocks(
    pattern: str,
    attention: AttentionOperatorConfig,
    grid_mixer: AbstractSequenceMixerConfig | None,
    drop_path: float,
    layer_scale: float | None,
) -> list[tuple[str, AbstractBlockConfig]]:
    """The letters of the pattern, each with its block."""
    if not pattern or set(pattern) - {"A", "H"}:
        raise ValueError(
            'A pattern of layers has the letters "A" (attention) and "H" (`grid_mixer`), one for each '
            f"layer. Received {pattern!r}."
        )
    if "H" in pattern and grid_mixer is None:
        raise ValueError(
            f'The pattern {pattern!r} has an "H": on grids of any size `grid_mixer` must say which '
            "mixer that is. Received None. `grid_hyena` makes one for about the size you have in mind."
        )
    mixers = {"A": QKVSequenceMixerConfig(attention), "H": grid_mixer}
    channel_mixer = MLPConfig(use_bias=False)
    return [
        (
            letter,
            ResidualBlockConfig(
                mixers[letter], channel_mixer, drop_path=drop_path, layer_scale=layer_scale
            ),
        )
        for letter in pattern
    ]


def _stack(blocks: list[tuple[str, AbstractBlockConfig]]) -> StackConfig:
    return StackConfig.from_layers([block for _, block in blocks])


def _grid(image_size: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """How many patches there are along every axis."""
    same = len(image_size) == len(patch_size)
    if not same or any(i % p for i, p in zip(image_size, patch_size, strict=True)):
        raise ValueError(
            "`vision_model` needs an `image_size` that is a multiple of the `patch_size` along every "
            f"axis. Received image_size={image_size}, patch_size={patch_size}."
        )
    return tuple(i // p for i, p in zip(image_size, patch_size, strict=True))

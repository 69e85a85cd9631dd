"""A language model of any mixers, from the flat arguments that other libraries have."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..blocks import ResidualBlockConfig
from ..channel_mixers import AbstractChannelMixerConfig, SwiGLUConfig
from ..config import AbstractConfig, require_positive
from ..encoders import TokenEmbeddingConfig
from ..heads import LanguageModelHeadConfig
from ..norms import LayerNormConfig, RMSNormConfig
from ..sequence_mixers import (
    AbstractSequenceMixerConfig,
    AttentionSequenceMixerConfig,
    CentaurusSequenceMixerConfig,
    CKConvSequenceMixerConfig,
    DeltaNetSequenceMixerConfig,
    GatedDeltaNetSequenceMixerConfig,
    GatedDeltaProductSequenceMixerConfig,
    GLASequenceMixerConfig,
    HGRNSequenceMixerConfig,
    HyenaSequenceMixerConfig,
    KDASequenceMixerConfig,
    KroneckerSequenceMixerConfig,
    LinearSequenceMixerConfig,
    LinOSSSequenceMixerConfig,
    LRUSequenceMixerConfig,
    Mamba2SequenceMixerConfig,
    MambaSequenceMixerConfig,
    MinGRUSequenceMixerConfig,
    MinLSTMSequenceMixerConfig,
    MLSTMSequenceMixerConfig,
    RetentionSequenceMixerConfig,
    RGLRUSequenceMixerConfig,
    RWKV7SequenceMixerConfig,
    S4DSequenceMixerConfig,
    S4SequenceMixerConfig,
    S5SequenceMixerConfig,
    S7SequenceMixerConfig,
)
from ..stack import StackConfig
from .base import Dtype
from .language_model import LanguageModelConfig


MIXERS: dict[str, type[AbstractSequenceMixerConfig]] = {
    "attn": AttentionSequenceMixerConfig,
    "Centaurus": CentaurusSequenceMixerConfig,
    "CKConv": CKConvSequenceMixerConfig,
    "DeltaNet": DeltaNetSequenceMixerConfig,
    "GatedDeltaNet": GatedDeltaNetSequenceMixerConfig,
    "GatedDeltaProduct": GatedDeltaProductSequenceMixerConfig,
    "GLA": GLASequenceMixerConfig,
    "HGRN": HGRNSequenceMixerConfig,
    "Hyena": HyenaSequenceMixerConfig,
    "KDA": KDASequenceMixerConfig,
    "Kronecker": KroneckerSequenceMixerConfig,
    "Linear": LinearSequenceMixerConfig,
    "LinOSS": LinOSSSequenceMixerConfig,
    "LRU": LRUSequenceMixerConfig,
    "Mamba": MambaSequenceMixerConfig,
    "Mamba2": Mamba2SequenceMixerConfig,
    "MinGRU": MinGRUSequenceMixerConfig,
    "MinLSTM": MinLSTMSequenceMixerConfig,
    "mLSTM": MLSTMSequenceMixerConfig,
    "Retention": RetentionSequenceMixerConfig,
    "RGLRU": RGLRUSequenceMixerConfig,
    "RWKV7": RWKV7SequenceMixerConfig,
    "S4": S4SequenceMixerConfig,
    "S4D": S4DSequenceMixerConfig,
    "S5": S5SequenceMixerConfig,
    "S7": S7SequenceMixerConfig,
}

Options = Mapping[str, Any]


@dataclass(frozen=True)
class HybridInitializerConfig(AbstractConfig):
    """Initial values of a hybrid language model.

    - `embedding_std`: standard deviation of the token table.
    - `rescale_branches`: divide the projections by which mixers write to the residual stream by the
        root of how many there are, so that the stream does not grow with depth. A mixer without
        one (S7, MinGRU and MinLSTM of the model's width, a plain GLU) stays as it is.
    """

    embedding_std: float = 1.0
    rescale_branches: bool = True

    def __post_init__(self):
        require_positive(self, "embedding_std")


def hybrid_language_model(
    d_model: int,
    d_state: int,
    n_layer: int,
    vocab_size: int,
    mixer_types: Sequence[str],
    d_intermediate: int = 0,
    mixer_kwargs: Mapping[str | int, Any] | None = None,
    mlp_cls: type[AbstractChannelMixerConfig] = SwiGLUConfig,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = True,
    fused_add_norm: bool = True,
    residual_in_fp32: bool = False,
    tie_embeddings: bool = True,
    pad_vocab_size_multiple: int = 8,
    initializer_cfg: HybridInitializerConfig | None = None,
    dtype: DTypeLike | None = None,
) -> LanguageModelConfig:
    """A language model with a mixer of its own in every layer, such as `["S5", "attn", "Mamba"]`.

    - `d_model`: width of the residual stream.
    - `d_state`: `state_dim` of the mixers that have one: Centaurus, LinOSS, LRU, Mamba, Mamba2, S4,
        S4D, S5, S7. The others size their state by heads or by the width.
    - `mixer_types`: one name per layer, `n_layer` in all. A pattern that repeats is compiled once.
    - `d_intermediate`: hidden width of every layer's channel mixer, rounded to a multiple of 8, or of
        each expert, as it is; with 0 there is no channel mixer.
    - `mixer_kwargs`: other options than the defaults: `{"num_heads": 4}` for all mixers that have
        it, `{"attn": {"num_heads": 4}}` for those of a type, `{2: {"num_heads": 4}}` for a layer,
        counted from 0. The more specific one holds.
    - `mlp_cls`: type of the channel mixers, such as `MixtureOfExpertsConfig`. The default is the
        gated MLP of lrnnx and Mamba.
    - `norm_epsilon`, `rms_norm`: of all norms; LayerNorm if not `rms_norm`.
    - `fused_add_norm`: changes nothing: XLA fuses the norms with the sums before them in any case.
    - `residual_in_fp32`: with `dtype=bfloat16`, keep the residual stream in float32.
    - `tie_embeddings`: logits by the embedding table.
    - `pad_vocab_size_multiple`: as in `LanguageModelConfig`.
    - `dtype`: float32 (the default) or bfloat16, in which the model computes; parameters are float32.

    **Raises:** `ValueError` that names the argument, what came, and what is valid.
    """
    if len(mixer_types) != n_layer or n_layer < 1:
        raise ValueError(
            "`hybrid_language_model` needs one name in `mixer_types` per layer: received "
            f"{len(mixer_types)} names for n_layer={n_layer}."
        )
    initial = HybridInitializerConfig() if initializer_cfg is None else initializer_cfg
    mixers = _mixers(mixer_types, d_state, mixer_kwargs or {})
    channel_mixer = _channel_mixer(mlp_cls, d_intermediate, d_model)
    norm = RMSNormConfig(norm_epsilon) if rms_norm else LayerNormConfig(norm_epsilon)
    wanted = cast(Dtype, "float32" if dtype is None else jnp.dtype(dtype).name)
    mixed = residual_in_fp32 and wanted == "bfloat16"
    compute_dtype = "bfloat16" if mixed else "input"
    stack = StackConfig.from_layers(
        [
            ResidualBlockConfig(mixer, channel_mixer, norm, compute_dtype=compute_dtype)
            for mixer in mixers
        ]
    )
    branches = n_layer if channel_mixer is None else 2 * n_layer
    scale = 1 / math.sqrt(branches) if initial.rescale_branches else 1.0
    return LanguageModelConfig(
        vocab_size=vocab_size,
        features=d_model,
        stack=dataclasses.replace(stack, final_norm=norm, branch_scale=scale),
        embedding=TokenEmbeddingConfig(init_std=initial.embedding_std),
        head=LanguageModelHeadConfig(tied=tie_embeddings),
        dtype="float32" if mixed else wanted,
        pad_vocab_size_multiple=pad_vocab_size_multiple,
    )


def _channel_mixer(
    cls: type[AbstractChannelMixerConfig], hidden: int, width: int
) -> AbstractChannelMixerConfig | None:
    if hidden == 0:
        return None
    sizes = {"expand": hidden / max(width, 1), "expert_features": hidden}
    size = {name: value for name, value in sizes.items() if name in _fields(cls)}
    if not size:
        raise ValueError(
            f"`mlp_cls={cls.__name__}` has no hidden layer that could be d_intermediate={hidden} "
            "wide. Give a type with the field `expand` or `expert_features`, such as `SwiGLUConfig`."
        )
    return cls(**size)


def _mixers(
    names: Sequence[str], d_state: int, options: Mapping[str | int, Any]
) -> list[AbstractSequenceMixerConfig]:
    _check(names, options)
    mixers = []
    for layer, name in enumerate(names):
        valid = _fields(MIXERS[name])
        common = {key: value for key, value in options.items() if key in valid}
        size = {"state_dim": d_state} if "state_dim" in valid else {}
        own = size | common | dict(options.get(name, {})) | dict(options.get(layer, {}))
        mixers.append(MIXERS[name](**own))
    return mixers


def _check(names: Sequence[str], options: Mapping[str | int, Any]) -> None:
    """Checks that every name is known, and that every option reaches a mixer that has it."""
    for name in names:
        if name not in MIXERS:
            raise ValueError(
                f"`mixer_types` names {name!r}, which is not a mixer. Valid: {', '.join(MIXERS)}."
            )
    listed = frozenset().union(*(_fields(MIXERS[name]) for name in names))
    for key, value in options.items():
        name = names[key] if isinstance(key, int) and 0 <= key < len(names) else str(key)
        if name in names:
            _check_options(f"mixer_kwargs[{key!r}]", value, name)
        elif key not in listed:
            raise ValueError(
                f"`mixer_kwargs` has the key {key!r}, which is neither a layer, nor one of the "
                f"`mixer_types`, nor an option of any of them. Their options: {_join(listed)}."
            )


def _check_options(where: str, options: Any, name: str) -> None:
    valid = _fields(MIXERS[name])
    if not isinstance(options, Mapping):
        raise ValueError(f"`{where}` must map options of {name} to values. Received {options!r}.")
    for key in options:
        if key not in valid:
            raise ValueError(f"`{where}`: {name} has no option {key!r}. Valid: {_join(valid)}.")


def _fields(cls: type[AbstractConfig]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(cls))


def _join(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))

"""A mixture of transformers that begins as a language model: every modality gets its blocks.

A text model's block and a `MoTBlock` hold arrays of the same names, but for the modality:

    stack/3/sequence_mixer/q_proj   →   stack/3/sequence_mixer/projections/<modality>/q_proj
    stack/3/channel_norm/weight     →   stack/3/channel_norms/<modality>/weight
    stack/final_norm/weight         →   stack/final_norm/<modality>/weight
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..blocks import MoTBlock, MoTBlockConfig, ResidualBlockConfig
from ..channel_mixers import AbstractRoutedChannelMixer
from ..paths import named_arrays, with_arrays
from ..sequence_mixers import AttentionSequenceMixerConfig, MoTAttentionConfig
from ..stack import Stack, StackConfig
from ..streams import Counting
from .language_model import LanguageModel
from .mixture_of_transformers import (
    MixtureOfTransformers,
    MixtureOfTransformersConfig,
    ModalityConfig,
)


class WarmStartReport(NamedTuple):
    """What became of the arrays of a model.

    - `copied`: each with the name of the source's array that it holds now.
    - `kept`: those that have no counterpart: encoders, heads, experts.
    - `missing`: those whose counterpart the source does not have.
    """

    copied: dict[str, str]
    kept: tuple[str, ...]
    missing: tuple[str, ...]


def warm_start_from_text_stack(
    model: PyTree, source: PyTree | Mapping[str, Array | np.ndarray]
) -> tuple[PyTree, WarmStartReport]:
    """A model whose `MoTBlock`s hold a dense stack's arrays, the same for every modality.

    - `model`: with one stack, such as a `MixtureOfTransformers`. One without `MoTBlock`s is returned as
        it is.
    - `source`: a model of ours, a stack of it, or arrays by KempnerForge's names, such as
        `layers.0.attention.q_proj.weight`, with or without `transformer.` in front.

    Experts are left alone. Doing it twice is doing it once.

    **Raises:** `ValueError` that names an array of another shape, and the modality.
    """
    given = _by_our_names(source)
    values, skip = _values(model), _routed(model)
    copied, kept, missing = {}, [], []
    for name, array in list(values.items()):
        found = None if name.startswith(skip) else _counterpart(name)
        if found is None:
            kept.append(name)
        elif found[0] not in given:
            missing.append(name)
        else:
            source_name, modality = found
            key, value = given[source_name]
            if tuple(value.shape) != tuple(array.shape):
                raise ValueError(
                    f"`warm_start_from_text_stack` cannot copy `{key}` of shape "
                    f"{tuple(value.shape)} to the modality {modality!r}, whose `{name}` has shape "
                    f"{tuple(array.shape)}. Build the mixture with the source's sizes."
                )
            copied[name] = key
            values[name] = value.astype(array.dtype)
    model = with_arrays(model, values) if copied else model
    return model, WarmStartReport(copied, tuple(kept), tuple(missing))


def mixture_of(
    model: LanguageModel,
    text: str,
    others: Mapping[str, ModalityConfig],
    key: PRNGKeyArray,
    *,
    counting: Counting = "restart",
) -> tuple[MixtureOfTransformers, WarmStartReport]:
    """A mixture of transformers that is, without other streams, this language model.

    - `text`: the name of its stream, which comes last.
    - `others`: the modalities that it gets beside it, by name.
    - `counting`: as in `MoTBlockConfig`.

    **Raises:** `ValueError` if a layer is not one of plain attention.
    """
    cfg = model.config
    if cfg.padded_vocab_size != cfg.vocab_size:
        raise ValueError(
            "`mixture_of` takes a language model without a padded vocabulary. Received "
            f"pad_vocab_size_multiple={cfg.pad_vocab_size_multiple}."
        )
    names = (*others, text)
    layers = [_mot_block(block, names, counting) for block in cfg.stack.layers]
    stack = dataclasses.replace(StackConfig.from_layers(layers), final_norm=cfg.stack.final_norm)
    own = ModalityConfig(cfg.vocab_size, cfg.embedding, cfg.head)
    config = MixtureOfTransformersConfig(
        cfg.features, (*others.items(), (text, own)), stack, cfg.dtype
    )
    mixture = config.build(key)
    where = lambda m: (m.encoders[text], m.heads[text])
    mixture = eqx.tree_at(where, mixture, (model.embedding, model.head))
    return warm_start_from_text_stack(mixture, model)


_PLACES = (  # of arrays in a stack of `MoTBlock`s; the modality is the second group
    r"(\d+/sequence_norm)s/([^/]+)(/.*)",
    r"(\d+/channel_norm)s/([^/]+)(/.*)",
    r"(\d+/channel_mixer)s/([^/]+)(/.*)",
    r"(\d+/sequence_mixer)/projections/([^/]+)(/.*)",
    r"(final_norm)/([^/]+)(/.*)",
)
_REFERENCE = {  # KempnerForge's names within a layer
    "attention_norm": "sequence_norm",
    "mlp_norm": "channel_norm",
    "attention.q_proj.weight": "sequence_mixer/q_proj",
    "attention.k_proj.weight": "sequence_mixer/k_proj",
    "attention.v_proj.weight": "sequence_mixer/v_proj",
    "attention.o_proj.weight": "sequence_mixer/out_proj",
    "attention.q_norm.weight": "sequence_mixer/q_norm/weight",
    "attention.k_norm.weight": "sequence_mixer/k_norm/weight",
    "mlp.gate_proj.weight": "channel_mixer/hidden_layers/0/gate_weight",
    "mlp.up_proj.weight": "channel_mixer/hidden_layers/0/weight",
    "mlp.down_proj.weight": "channel_mixer/out_proj",
}


def _counterpart(name: str) -> tuple[str, str] | None:
    """The name of the same array in a stack for text, and the modality."""
    for pattern in _PLACES:
        match = re.fullmatch(pattern, _within_stack(name))
        if match is not None:
            return match[1] + match[3], match[2]
    return None


def _within_stack(name: str) -> str:
    """A name as it is in the stack, whatever model that is part of."""
    return re.sub(r"^(.*/)?stack/", "", name)


def _by_our_names(source) -> dict[str, tuple[str, Array | np.ndarray]]:
    """The arrays of a source by their names in our stack, each with its own name."""
    if isinstance(source, Mapping):
        named = {_translate(name.removeprefix("transformer.")): name for name in source}
        return {ours: (name, np.asarray(source[name])) for ours, name in named.items()}
    return {_within_stack(name): (name, array) for name, array in _values(source).items()}


def _values(model: PyTree) -> dict[str, Array | np.ndarray]:
    named = named_arrays(model).items()
    return {name: leaf for name, leaf in named if not isinstance(leaf, jax.ShapeDtypeStruct)}


def _translate(name: str) -> str:
    """KempnerForge's name of an array as ours."""
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", name)
    if match is None:
        return re.sub(r"^norm\.", "final_norm/", name)
    layer, inner = match.groups()
    norm = re.fullmatch(r"(attention_norm|mlp_norm)\.(.*)", inner)
    if norm is not None:
        return f"{layer}/{_REFERENCE[norm[1]]}/{norm[2]}"
    return f"{layer}/{_REFERENCE.get(inner, inner)}"


def _routed(model: PyTree) -> tuple[str, ...]:
    """The beginnings of the names of experts."""
    is_stack = lambda node: isinstance(node, Stack)
    prefixes = []
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_stack):
        if not isinstance(node, Stack):
            continue
        outer = jax.tree_util.keystr(path, simple=True, separator="/")
        for number, block in enumerate(node.layers()):
            mixers = block.channel_mixers.items() if isinstance(block, MoTBlock) else ()
            for name, mixer in mixers:
                if isinstance(mixer, AbstractRoutedChannelMixer):
                    parts = (outer, str(number), "channel_mixers", name, "")
                    prefixes.append("/".join(parts).removeprefix("/"))
    return tuple(prefixes)


def _mot_block(block, modalities: tuple[str, ...], counting: Counting) -> MoTBlockConfig:
    attention = block.sequence_mixer if isinstance(block, ResidualBlockConfig) else None
    if not isinstance(attention, AttentionSequenceMixerConfig) or block.channel_mixer is None:
        raise ValueError(
            "`mixture_of` takes a language model of blocks with attention and a channel mixer. "
            f"Received `{block}`."
        )
    new = MoTBlockConfig(
        modalities,
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.qk_norm,
        counting=counting,
        rope_base=attention.rope_base,
        rope_scaling=attention.rope_scaling,
        channel_mixer=block.channel_mixer,
        norm=block.norm,
    )
    assert isinstance(new.mixer, MoTAttentionConfig)
    if block != ResidualBlockConfig(new.mixer.attention, block.channel_mixer, block.norm):
        raise ValueError(
            f"`mixture_of` has no counterpart for all options of `{block}`: of its attention it keeps "
            "heads, `qk_norm` and RoPE, and of its block the norm and the channel mixer."
        )
    return new

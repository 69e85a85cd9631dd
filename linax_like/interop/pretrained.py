"""Models in a folder: `config.json` says what they are, and safetensors hold the arrays by public name.

save_pretrained(model, "folder")
model = load_pretrained("folder")
"""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ..config import AbstractConfig
from ..models import (
    HierarchicalModel,
    HierarchicalModelConfig,
    LanguageModel,
    LanguageModelConfig,
    SequenceModel,
    SequenceModelConfig,
    VisionModel,
    VisionModelConfig,
)
from ..paths import named_arrays, require_arrays, shapes_of
from .folder import (
    CONFIG,
    fill,
    MAX_SHARD_BYTES,
    read_json,
    WeightFolder,
    write_folder,
)


Model = LanguageModel | SequenceModel | VisionModel | HierarchicalModel
ModelConfig = (
    LanguageModelConfig | SequenceModelConfig | VisionModelConfig | HierarchicalModelConfig
)


def save_pretrained(
    model: Model,
    folder: str | os.PathLike,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model's config and weights. The folder appears whole or not at all.

    - `max_shard_bytes`: larger weights are split into several files with an index.

    **Raises:** `ValueError` if there already is something at `folder`, or if the model is not what its
    config builds.
    """
    arrays = named_arrays(jax.device_get(model))
    _require_described(model, shapes_of(arrays))
    tensors = ((name, np.asarray(array)) for name, array in arrays.items())
    write_folder(folder, model.config.to_json(), tensors, max_shard_bytes)


def load_pretrained(
    folder: str | os.PathLike,
    *,
    classes: Iterable[type[AbstractConfig]] = (),
    dtype: DTypeLike | None = None,
    sharding: Sharding | PyTree[Sharding] | None = None,
) -> Model:
    """The model of a folder that `save_pretrained` wrote, bit for bit.

    - `classes`: configs of your own that are in the model's, such as a mixer's. A folder names classes
        of linax_like alone, and those that you give.
    - `dtype`: `"float32"` or `"bfloat16"`, of parameters and residual stream; by default as saved.
    - `sharding`: one for all arrays, or a tree of them like the model; every array goes straight there.

    **Raises:** `ValueError` that names the file, field or array, if something is missing, extra, of
    another shape or not whole.
    """
    config = _read_config(Path(folder) / CONFIG, classes)
    if dtype is not None:
        config = dataclasses.replace(config, dtype=jnp.dtype(dtype).name)
    skeleton = eqx.filter_eval_shape(config.build, jr.key(0))
    weights = WeightFolder(folder)
    require_arrays(shapes_of(named_arrays(skeleton)), weights.shapes)
    return fill(skeleton, weights.read, dtype, sharding)


def _require_described(model: Model, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = shapes_of(named_arrays(eqx.filter_eval_shape(model.config.build, jr.key(0))))
    if expected != found:
        name = min(name for name, _ in expected.items() ^ found.items())
        raise ValueError(
            f"`save_pretrained` was given a `{type(model).__name__}` whose array `{name}` is not what "
            "its config says, so that it could not be loaded. Save the model as it was before "
            "`tiled_decoding`, `materialize_kernels` or the like."
        )


def _read_config(path: Path, classes: Iterable[type[AbstractConfig]]) -> ModelConfig:
    values = read_json(path)
    if "model_type" in values:
        raise ValueError(
            f"`{path}` was written by transformers: load it with `interop.huggingface.load`."
        )
    config = AbstractConfig.from_dict(values, classes)
    if not isinstance(config, ModelConfig):
        raise ValueError(f"`{path}` holds a `{type(config).__name__}`, which is not a model's.")
    return config

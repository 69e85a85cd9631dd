"""Models as Hugging Face keeps them: `config.json`, and safetensors under the architecture's names."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from ...models import LanguageModel, LanguageModelConfig
from ...paths import named_arrays, require_arrays, Shape
from ..folder import (
    CONFIG,
    fill,
    MAX_SHARD_BYTES,
    read_json,
    WeightFolder,
    write_folder,
)
from .agreement import difference
from .architecture import Architecture, Row
from .llama import LLAMA
from .mamba import FALCON_MAMBA, MAMBA
from .mamba2 import MAMBA2
from .olmo_hybrid import OLMO_HYBRID
from .options import encode, Options
from .qwen3 import QWEN3
from .qwen3_5 import QWEN3_5
from .qwen3_next import QWEN3_NEXT
from .recurrent_gemma import RECURRENT_GEMMA
from .smollm3 import SMOLLM3


ARCHITECTURES = {
    each.model_type: each
    for each in (
        LLAMA,
        QWEN3,
        SMOLLM3,
        MAMBA,
        FALCON_MAMBA,
        MAMBA2,
        RECURRENT_GEMMA,
        QWEN3_5,
        QWEN3_NEXT,
        OLMO_HYBRID,
    )
}


def load(
    folder: str | os.PathLike,
    *,
    dtype: DTypeLike | None = None,
    sharding: Sharding | PyTree[Sharding] | None = None,
) -> LanguageModel:
    """The model of a folder that transformers wrote: its config, and its weights bit for bit.

    Nothing is executed: neither pickled files nor a folder's own code.

    - `dtype`: `"float32"` (to train) or `"bfloat16"`, of parameters and residual stream; by default
        what the folder has.
    - `sharding`: one for all arrays, or a tree of them like the model; every array goes straight there.

    **Raises:** `ValueError` that names the file, option or tensor, if the architecture or an option is
    unknown, or if a tensor is missing, extra, of another shape or not whole.
    """
    values = read_json(Path(folder) / CONFIG)
    name = values.get("model_type")
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        known = ", ".join(f"`{each}`" for each in ARCHITECTURES)
        raise ValueError(f"`config.json` has the model type {name!r}. Known: {known}.")
    config = _read_config(architecture, values, dtype)
    skeleton = eqx.filter_eval_shape(config.build, jr.key(0))
    weights = WeightFolder(folder)
    return fill(skeleton, _reader(weights, architecture, skeleton), dtype, sharding)


def save(
    model: LanguageModel,
    folder: str | os.PathLike,
    architecture: str | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a folder that transformers (5 or later) reads. It appears whole or not at all.

    - `architecture`: a `model_type`; by default the first that can express the model.
    - `max_shard_bytes`: larger weights are split into several files with an index.

    **Raises:** `ValueError` that says why, if the architecture cannot express the model, or if there
    already is something at `folder`.
    """
    chosen, options = _express(model.config, architecture)
    dtype = jnp.dtype(model.embedding.table.dtype).name
    values = {
        "architectures": [chosen.class_name],
        "model_type": chosen.model_type,
        "dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    } | options
    text = json.dumps(encode(values), indent=2, allow_nan=False) + "\n"
    arrays = named_arrays(jax.device_get(model))
    rows = _rows(chosen, model.config, arrays)
    write_folder(folder, text, _tensors(rows, arrays), max_shard_bytes)


def _reader(
    weights: WeightFolder, architecture: Architecture, skeleton: LanguageModel
) -> Callable[[str], np.ndarray]:
    """Reads arrays of a model by public name, from the tensors of a folder that holds all of them."""
    arrays = named_arrays(skeleton)
    rows = _rows(architecture, skeleton.config, arrays)
    found = _found(weights, architecture, skeleton.config)
    stand_ins = {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in arrays.items()}
    wanted = {name: tensor.shape for name, tensor in _tensors(rows, stand_ins)}
    given = {name: weights.shapes[theirs] for name, theirs in found.items()}
    require_arrays(wanted, given | _recut(rows, wanted, given))
    places = {name: (row, i) for row in rows for i, name in enumerate(row.public)}

    def read(name: str) -> np.ndarray:
        row, i = places[name]
        tensors = (weights.read(found[tensor]) for tensor in row.disk)
        return row.transform.load(*tensors)[i]

    return read


def _read_config(
    architecture: Architecture, values: dict[str, Any], dtype: DTypeLike | None = None
) -> LanguageModelConfig:
    options = Options(values if dtype is None else values | {"dtype": jnp.dtype(dtype).name})
    if options.dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"A model is computed in float32 or bfloat16, not {options.dtype}: load it with "
            "`dtype=` one of these."
        )
    config = architecture.config_from(options)
    options.finish()
    return config


def _express(
    config: LanguageModelConfig, architecture: str | None
) -> tuple[Architecture, dict[str, Any]]:
    """An architecture, and the options with which it is this model."""
    if architecture is not None and architecture not in ARCHITECTURES:
        known = ", ".join(f"`{each}`" for each in ARCHITECTURES)
        raise ValueError(f"There is no architecture {architecture!r}. Known: {known}.")
    reasons = []
    for name in ARCHITECTURES if architecture is None else [architecture]:
        try:
            return ARCHITECTURES[name], _options(ARCHITECTURES[name], config)
        except ValueError as error:
            reasons.append(f"as `{name}`, {error}")
    raise ValueError(
        "This model cannot be written as one that transformers reads: " + "; ".join(reasons) + "."
    )


def _options(architecture: Architecture, config: LanguageModelConfig) -> dict[str, Any]:
    """The options with which the architecture is this model.

    **Raises:** `ValueError` that names what they cannot say: reading them gives another model.
    """
    options = architecture.config_to(config)
    read = _read_config(architecture, options | {"model_type": architecture.model_type})
    found = difference(config, read)
    if found is not None:
        raise ValueError(found)
    return options


def _rows(
    architecture: Architecture, config: LanguageModelConfig, arrays: Mapping[str, Any]
) -> list[Row]:
    """The rows of the table whose arrays the model has."""
    rows = [row for row in architecture.table(config) if any(n in arrays for n in row.public)]
    unknown = arrays.keys() - {name for row in rows for name in row.public}
    if unknown:
        kind = architecture.model_type
        raise ValueError(f"A `{kind}` has no tensor for `{sorted(unknown)[0]}`.")
    return rows


def _tensors(rows: Iterable[Row], arrays: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for row in rows:
        tensors = row.transform.save(*(arrays[name] for name in row.public))
        yield from zip(row.disk, tensors, strict=True)


def _found(
    weights: WeightFolder, architecture: Architecture, config: LanguageModelConfig
) -> dict[str, str]:
    """The names in the file, by those of the table."""
    names = {architecture.canonical(name): name for name in weights.shapes}
    if config.head.tied:  # some write the shared table twice
        names.pop("lm_head.weight", None)
    return {ours: theirs for ours, theirs in names.items() if ours is not None}


def _recut(
    rows: Iterable[Row], wanted: Mapping[str, Shape], given: Mapping[str, Shape]
) -> dict[str, Shape]:
    """The shapes of tensors whose rows a file cuts elsewhere, as if it did not."""
    same = {}
    for row in rows:
        if row.transform.recut and all(name in given for name in row.disk):
            joined = [_joined([shapes[name] for name in row.disk]) for shapes in (wanted, given)]
            if joined[0] == joined[1]:
                same |= {name: wanted[name] for name in row.disk}
    return same


def _joined(shapes: list[Shape]) -> tuple[int, set[Shape]]:
    """The rows of tensors put one under the other, and what must be one shape for that."""
    return sum(sum(shape[:1]) for shape in shapes), {shape[1:] for shape in shapes}

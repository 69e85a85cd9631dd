"""Whether two configs describe the same function, however its parameters began or are trained."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.random as jr

from ...channel_mixers import GeGLUConfig, MLPConfig, SwiGLUConfig
from ...models import LanguageModelConfig
from ...paths import named_arrays
from ...stack import StackConfig


# Initial values, training, speed and the dtype of computation; and widths, which shapes show.
_FREE = frozenset(
    "init_std dt_min dt_max dt_floor min_radius max_radius max_phase dropout drop_path remat unroll "
    "chunk dtype compute_dtype expand state_dim dt_rank lru_width".split()
)
# Sizes that follow from the width where they are None.
_DERIVED = frozenset({"num_heads", "num_kv_heads", "head_dim"})


def difference(ours: LanguageModelConfig, other: LanguageModelConfig) -> str | None:
    """The first field in which the other config differs, with both values; None if they agree."""
    found = _difference(ours, other, "config")
    if found is not None:
        return found
    shapes = [
        {name: leaf.shape for name, leaf in named_arrays(_skeleton(cfg)).items()}
        for cfg in (ours, other)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        shape, wanted = (each.get(name) for each in shapes)
        if shape != wanted:
            return f"`{name}` has shape {shape}, not {wanted}"
    return None


def _skeleton(config: LanguageModelConfig) -> Any:
    return eqx.filter_eval_shape(config.build, jr.key(0))


def _difference(ours: Any, other: Any, where: str) -> str | None:
    ours, other = _plain(ours), _plain(other)
    if dataclasses.is_dataclass(ours) and type(ours) is type(other):
        pairs = [
            (getattr(ours, f.name), getattr(other, f.name), f"{where}.{f.name}")
            for f in dataclasses.fields(ours)
            if f.name not in _FREE and not (f.name in _DERIVED and getattr(ours, f.name) is None)
        ]
    elif isinstance(ours, tuple) and isinstance(other, tuple) and len(ours) == len(other):
        pairs = [(*pair, f"{where}.{i}") for i, pair in enumerate(zip(ours, other, strict=True))]
    else:
        return None if ours == other else f"`{where}` is {ours!r}, not {other!r}"
    return next(filter(None, (_difference(*pair) for pair in pairs)), None)


def _plain(value: Any) -> Any:
    """One of several spellings of the same: layers written out, feed-forward layers by their class."""
    match value:
        case StackConfig():
            return (value.final_norm, *value.layers)
        case SwiGLUConfig():
            return MLPConfig(1, value.expand, "swiglu", value.use_bias)
        case GeGLUConfig():
            return MLPConfig(1, value.expand, "geglu", value.use_bias)
        case _:
            return value

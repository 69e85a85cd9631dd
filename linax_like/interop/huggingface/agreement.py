"""Whether two configs describe the same function, however its parameters began or are trained."""

import dataclasses
from typing import Any

import equinox as eqx
import jax.random as jr

from ...channel_mixers import GeGLUConfig, MLPConfig, SwiGLUConfig
from ...config import AbstractConfig
from ...heads import LanguageModelHeadConfig
from ...models import LanguageModelConfig
from ...paths import named_arrays, shapes_of
from ...stack import StackConfig


# Initial values, training, speed and the dtype of computation; and widths, which shapes show.
_FREE = frozenset(
    "init_std dt_min dt_max dt_floor min_radius max_radius max_phase dropout drop_path remat unroll "
    "chunk dtype compute_dtype expand state_dim dt_rank lru_width balance_loss z_loss".split()
)
# Sizes that follow from the width where they are None.
_DERIVED = (".num_heads", ".num_kv_heads", ".head_dim", ".expert_features")


def difference(ours: LanguageModelConfig, other: LanguageModelConfig) -> str | None:
    """The first field in which the other config differs, with both values; None if they agree."""
    found = _difference(ours, other, "config")
    if found is not None:
        return found
    shapes = [shapes_of(named_arrays(_skeleton(cfg))) for cfg in (ours, other)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        shape, wanted = (each.get(name) for each in shapes)
        if shape != wanted:
            return f"`{name}` has shape {shape}, not {wanted}"
    return None


def _skeleton(config: LanguageModelConfig) -> Any:
    return eqx.filter_eval_shape(config.build, jr.key(0))


def _difference(ours: Any, other: Any, where: str) -> str | None:
    ours, other = _plain(ours), _plain(other)
    if ours == other or (ours is None and where.endswith(_DERIVED)):
        return None
    parts, others = _parts(ours), _parts(other)
    if type(ours) is not type(other) or parts.keys() != others.keys() or not parts:
        return f"`{where}` is {_short(ours)}, not {_short(other)}"
    found = (_difference(parts[name], others[name], f"{where}.{name}") for name in parts)
    return next(filter(None, found), None)


def _plain(value: Any) -> Any:
    """One of several spellings of the same."""
    match value:
        case SwiGLUConfig(expand, bias):
            return MLPConfig(1, expand, "swiglu", bias)
        case GeGLUConfig(expand, bias):
            return MLPConfig(1, expand, "geglu", bias)
        case LanguageModelHeadConfig(tied=False, scale=None):
            return dataclasses.replace(value, scale=1.0)
        case _:
            return value


def _parts(value: Any) -> dict[str, Any]:
    """What a value consists of, as far as the function depends on it."""
    if isinstance(value, StackConfig):
        return {"final_norm": value.final_norm} | _parts(value.layers)
    if isinstance(value, tuple):
        return {str(i): part for i, part in enumerate(value)}
    if not dataclasses.is_dataclass(value):
        return {}
    parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: part for name, part in parts.items() if name not in _FREE}


def _short(value: Any) -> str:
    """A config by its class, anything else as it is."""
    is_config = isinstance(value, AbstractConfig)
    return f"a `{type(value).__name__}`" if is_config else repr(value)

"""The options of a `config.json`, in the spelling of transformers 5 or of the versions before.

Every option is read by someone, or known to change nothing that is computed; any other is an error.
"""

import math
from collections.abc import Mapping
from typing import Any

from ...positions import (
    AbstractRopeScalingConfig,
    LinearRopeScalingConfig,
    Llama3RopeScalingConfig,
)
from ...sequence_mixers import AttentionSequenceMixerConfig


# Names, token ids, training and bookkeeping: nothing of what a model computes.
_HARMLESS: frozenset[str] = frozenset(
    "architectures model_type transformers_version _name_or_path bos_token_id eos_token_id "
    "pad_token_id use_cache initializer_range max_position_embeddings attention_dropout "
    "pretraining_tp torchscript output_attentions output_hidden_states return_dict id2label "
    "label2id tokenizer_class _attn_implementation dtype transformers.js_config".split()
)
_MISSING = object()


class Options:
    """Reads options one by one.

    - `model_type`: the architecture.
    - `dtype`: what the model is computed in.
    """

    def __init__(self, values: Mapping[str, Any]):
        self._values = _modern(values)
        self._read: set[str] = set(_HARMLESS)
        self.model_type: str = self.take("model_type", str)
        self.dtype: str = self.take("dtype", str, "float32").removeprefix("torch.")

    def take(self, name: str, kind: type, default: Any = _MISSING, least: int = 1) -> Any:
        """The value of an option; the default where it is absent, null or, for a size, "auto".

        - `kind`: `int`, `float`, `bool`, `str`, `list` or `dict`.
        - `least`: the smallest `int`; a size is positive.
        """
        self._read.add(name)
        value = self._values.get(name)
        if value is None or (kind is int and value == "auto"):
            if default is _MISSING:
                raise ValueError(f"`config.json` lacks the option `{name}`.")
            return default
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole or isinstance(value, float) if kind is float else isinstance(value, kind)
        if not fits or (kind is int and not (whole and value >= least)):
            described = (
                f"a whole number of at least {least}" if kind is int else f"a {kind.__name__}"
            )
            raise ValueError(f"`config.json`: `{name}` must be {described}. Received {value!r}.")
        return value

    def demand(self, name: str, *allowed: Any) -> Any:
        """The value of an option that must have one of a few values; by default the first."""
        self._read.add(name)
        value = self._values.get(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise ValueError(
                f"`config.json`: `{name}` is {value!r}, but a `{self.model_type}` can be computed here "
                f"only with {choices}."
            )
        return value

    def ignore(self, *names: str) -> None:
        """Options that change initial values, training or speed, but not the function."""
        self._read |= set(names)

    def finish(self) -> None:
        """**Raises:** `ValueError` if an option was not read."""
        unknown = sorted(self._values.keys() - self._read)
        if unknown:
            raise ValueError(
                f"`config.json` has the option `{unknown[0]}`, which is unknown for a "
                f"`{self.model_type}`: what it changes would be lost."
            )

    def rope(self, base: float, fraction: float = 1.0, ignore: tuple[str, ...] = ()) -> dict:
        """The fields of `AttentionSequenceMixerConfig` that say how positions turn.

        - `base`, `fraction`: the architecture's defaults.
        - `ignore`: parameters that make no difference.
        """
        given = {
            k: v for k, v in self.take("rope_parameters", dict, {}).items() if k not in ignore
        }
        kind = given.pop("rope_type", "default")
        try:
            base = float(given.pop("rope_theta", base))
            fraction = float(given.pop("partial_rotary_factor", fraction))
            scaling = _scaling_from(kind, given)
        except KeyError as error:
            raise ValueError(f"`config.json`: `rope_parameters` lacks {error}.") from None
        except TypeError as error:
            raise ValueError(
                f"`config.json`: `rope_parameters` has a wrong type: {error}."
            ) from None
        if given:
            raise ValueError(f"`config.json`: `rope_parameters` has the unknown {sorted(given)}.")
        return {"rope_base": base, "rope_fraction": fraction, "rope_scaling": scaling}


def rope_parameters(cfg: AttentionSequenceMixerConfig) -> dict[str, Any]:
    """The inverse of `Options.rope`."""
    if cfg.rope_base is None:
        raise ValueError("it has attention without rotary positions")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rope_base}
    if cfg.rope_fraction != 1:
        parameters["partial_rotary_factor"] = cfg.rope_fraction
    match cfg.rope_scaling:
        case LinearRopeScalingConfig(factor):
            parameters |= {"rope_type": "linear", "factor": factor}
        case Llama3RopeScalingConfig(factor, low, high, length):
            parameters |= {"rope_type": "llama3", "factor": factor}
            parameters |= {"low_freq_factor": low, "high_freq_factor": high}
            parameters["original_max_position_embeddings"] = length
    return parameters


def _scaling_from(kind: str, given: dict[str, Any]) -> AbstractRopeScalingConfig | None:
    match kind:
        case "default":
            return None
        case "linear":
            return LinearRopeScalingConfig(given.pop("factor"))
        case "llama3":
            factor, low, high, length = (
                given.pop(name)
                for name in (
                    "factor",
                    "low_freq_factor",
                    "high_freq_factor",
                    "original_max_position_embeddings",
                )
            )
            return Llama3RopeScalingConfig(factor, low, high, length)
        case _:
            raise ValueError(
                f"`config.json`: the `rope_type` {kind!r} cannot be computed here. Known: 'default', "
                "'linear', 'llama3'."
            )


def _modern(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options as transformers 5 spells them."""
    values = {name: _decode(value) for name, value in values.items()}
    if "torch_dtype" in values:
        values.setdefault("dtype", values.pop("torch_dtype"))
    scaling = values.pop("rope_scaling", None)
    rope = dict(scaling) if isinstance(scaling, dict) else {}
    if "type" in rope:
        rope.setdefault("rope_type", rope.pop("type"))
    for name in ("rope_theta", "partial_rotary_factor"):
        if values.get(name) is not None:
            rope[name] = values.pop(name)
    given = values.get("rope_parameters")
    if rope and isinstance(given, dict | None):
        values["rope_parameters"] = rope | (given or {})
    return values


def _decode(value: Any) -> Any:
    """Infinity and NaN, which JSON lacks, are written as objects."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return _float(value["__float__"])
        return {name: _decode(inner) for name, inner in value.items()}
    return [_decode(inner) for inner in value] if isinstance(value, list) else value


def _float(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f"`config.json`: {text!r} is not a number.") from None


def encode(value: Any) -> Any:
    """The inverse of reading: infinity as an object."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {name: encode(inner) for name, inner in value.items()}
    return [encode(inner) for inner in value] if isinstance(value, list | tuple) else value

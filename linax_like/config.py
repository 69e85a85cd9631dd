"""The one base of all configs: frozen values that validate themselves and survive JSON."""

import dataclasses
import difflib
import functools
import importlib
import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .annotations import alternatives, describe, fits, item_hints


# Where `from_dict` looks a type tag up that it was not given the class of: the only registry.
_NAMESPACES = ("linax_like", "linax_like.training", "linax_like.tasks")

Config = TypeVar("Config", bound="AbstractConfig")
Classes = Mapping[str, type["AbstractConfig"]]  # by name


@dataclass(frozen=True)
class AbstractConfig:
    """A frozen, hashable value: plain Python numbers, strings, tuples, and other configs.

    Arguments are checked against the annotations of the fields before `__post_init__` sees them.
    """

    def __new__(cls, *args, **kwargs):
        hints = _hints(cls)
        for name in kwargs:
            if name not in hints:
                raise ValueError(
                    f"`{cls.__name__}` has no field `{name}`. {_suggest(name, list(hints))}"
                )
        for name, value in (dict(zip(hints, args, strict=False)) | kwargs).items():
            if not fits(value, hints[name]):
                described = describe(hints[name])
                raise ValueError(
                    f"`{cls.__name__}.{name}` must be {described}. Received {value!r}."
                )
        return super().__new__(cls)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary. Every config in it carries its class name under `"type"`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"type": type(self).__name__} | {k: _encode(v) for k, v in fields.items()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(
        cls: type[Config],
        data: Mapping[str, Any],
        classes: Iterable[type["AbstractConfig"]] = (),
    ) -> Config:
        """The inverse of `to_dict`.

        - `classes`: configs of your own that may be in it.

        **Raises:** `ValueError` that names the place, the wrong key, type or value, and what is valid.
        """
        config = _decode(data, cls, cls.__name__, {known.__name__: known for known in classes})
        if not isinstance(config, cls):
            raise ValueError(f"Expected a `{cls.__name__}`. Received `{type(config).__name__}`.")
        return config

    @classmethod
    def from_json(
        cls: type[Config], text: str, classes: Iterable[type["AbstractConfig"]] = ()
    ) -> Config:
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"This is not the JSON of a `{cls.__name__}`: {error}.") from None
        if not isinstance(data, dict):
            raise ValueError(f"This is not the JSON of a `{cls.__name__}`: {text.strip():.40}")
        return cls.from_dict(data, classes)

    def updated(self: Config, path: str, value: Any) -> Config:
        """A copy in which the field at a dotted path, such as `stack.groups.0.1`, has another value."""
        data = self.to_dict()
        node: Any = data
        *parents, last = path.split(".")
        for name in parents:
            node = node[_index(node, name, path)]
        node[_index(node, last, path)] = _encode(value)
        return type(self).from_dict(data, classes_in(self))


def configs_in(value: Any) -> list[AbstractConfig]:
    """A config and all in it."""
    if isinstance(value, tuple):
        return [config for item in value for config in configs_in(item)]
    if not isinstance(value, AbstractConfig):
        return []
    fields = (getattr(value, field.name) for field in dataclasses.fields(value))
    return [value, *configs_in(tuple(fields))]


def classes_in(value: Any) -> set[type[AbstractConfig]]:
    """The types of a config and of all in it."""
    return set(map(type, configs_in(value)))


def require(condition: bool, config: AbstractConfig, field: str, law: str) -> None:
    """Raises a `ValueError` that names the config, the field, its value and the law it breaks."""
    if not condition:
        value = getattr(config, field)
        raise ValueError(f"`{type(config).__name__}({field}={value!r})`: `{field}` must be {law}.")


def require_positive(config: AbstractConfig, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        require(value > 0, config, field, "positive")
        require(value < math.inf, config, field, "finite")


def require_choice(config: AbstractConfig, *fields: str) -> None:
    """Checks fields annotated with a `Literal` against it."""
    hints = _hints(type(config))
    for field in fields:
        choices = typing.get_args(hints[field])
        law = "one of " + ", ".join(map(repr, choices))
        require(getattr(config, field) in choices, config, field, law)


def _encode(value: Any) -> Any:
    if isinstance(value, AbstractConfig):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    return value


def _decode(value: Any, hint: Any, where: str, known: Classes) -> Any:
    """Rebuilds a field's value, and checks it against the field's annotation."""
    if isinstance(value, Mapping):
        return _decode_config(value, hint, where, known)
    if isinstance(value, list | tuple):
        return _decode_tuple(tuple(value), hint, where, known)
    if not fits(value, hint):
        raise ValueError(f"`{where}` must be {describe(hint)}. Received {value!r}.")
    return value


def _decode_config(
    data: Mapping[str, Any], hint: Any, where: str, known: Classes
) -> AbstractConfig:
    if "type" not in data:
        raise ValueError(f"`{where}` lacks its `type`, the class name of a config.")
    cls = _find_class(data["type"], where, known)
    expected = [h for h in alternatives(hint) if isinstance(h, type)]
    if expected and not issubclass(cls, tuple(expected)):
        raise ValueError(f"`{where}` must be {describe(hint)}. Received a `{cls.__name__}`.")
    hints = _hints(cls)
    fields = {}
    for key, value in data.items():
        if key == "type":
            continue
        if key not in hints:
            raise ValueError(f"`{where}` has no field `{key}`. {_suggest(key, list(hints))}")
        fields[key] = _decode(value, hints[key], f"{where}.{key}", known)
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.name not in fields
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"`{where}` lacks `{missing[0]}`, which has no default.")
    return cls(**fields)


def _decode_tuple(values: tuple, hint: Any, where: str, known: Classes) -> tuple:
    for alternative in alternatives(hint):
        hints = item_hints(alternative, len(values))
        if hints is not None:
            items = zip(values, hints, strict=True)
            return tuple(_decode(v, h, f"{where}.{i}", known) for i, (v, h) in enumerate(items))
    raise ValueError(f"`{where}` must be {describe(hint)}. Received {list(values)!r}.")


def _find_class(name: Any, where: str, known: Classes) -> type[AbstractConfig]:
    if isinstance(name, str) and name in known:
        return known[name]
    for namespace in _NAMESPACES:
        cls = getattr(importlib.import_module(namespace), str(name), None)
        if isinstance(cls, type) and issubclass(cls, AbstractConfig):
            return cls
    raise ValueError(
        f"`{where}` has the type {name!r}, which is not a config of linax_like. If it is your own, "
        f"give the class: `classes=({name},)`."
    )


@functools.lru_cache
def _hints(cls: type[AbstractConfig]) -> dict[str, Any]:
    """The annotations of a config's fields, in their order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _index(node: Any, name: str, path: str) -> str | int:
    """The key or list index that a part of a dotted path means in an encoded config."""
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return int(name)
    names = [k for k in node if k != "type"] if isinstance(node, dict) else []
    if name in names:
        return name
    if isinstance(node, list):
        names = [str(i) for i in range(len(node))]
    raise ValueError(f"There is no `{name}` in the path `{path}`. {_suggest(name, names)}")


def _suggest(key: str, names: list[str]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean `{close[0]}`? " if close else ""
    valid = ", ".join(f"`{n}`" for n in names) or "nothing (it is a leaf)"
    return f"{hint}Valid: {valid}."

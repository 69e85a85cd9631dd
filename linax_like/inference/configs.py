"""Models whose modules are to be described by other configs than those that built them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from ..config import AbstractConfig


Change = Callable[[AbstractConfig], AbstractConfig | None]


def with_configs(model: PyTree, change: Change) -> PyTree:
    """A copy of the model, in which every config is another one. Its arrays are the same.

    - `change`: what a config becomes; where it is None, the configs within it are changed.
    """

    def copy(node: PyTree) -> PyTree:
        if not _is_module(node):
            return node
        children, structure = jax.tree.flatten(node, is_leaf=lambda inner: inner is not node)
        children = [jax.tree.map(copy, child, is_leaf=_is_module) for child in children]
        new = jax.tree.unflatten(structure, children)
        for field in dataclasses.fields(new):
            value = getattr(new, field.name)
            if isinstance(value, AbstractConfig):  # static, hence out of reach for `eqx.tree_at`
                object.__setattr__(new, field.name, _changed(value, change))
        return new

    return jax.tree.map(copy, model, is_leaf=_is_module)


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, tuple):
        return tuple(_changed(item, change) for item in value)
    if not isinstance(value, AbstractConfig):
        return value
    new = change(value)
    if new is not None:
        return new
    names = (field.name for field in dataclasses.fields(value))
    return dataclasses.replace(
        value, **{name: _changed(getattr(value, name), change) for name in names}
    )


def _is_module(node: PyTree) -> bool:
    return isinstance(node, eqx.Module)

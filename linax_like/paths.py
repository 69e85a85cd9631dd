"""Public names of a model's arrays, such as `stack/7/sequence_mixer/log_decay`.

A stack stores the repeats of a pattern stacked; under its public names every block is on its own, so
that names do not depend on how layers are grouped. Freezing, import, export and inspection use them.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .stack import Stack


Leaf = Array | np.ndarray | jax.ShapeDtypeStruct  # of a model, its copy on the host, its skeleton
Values = Array | np.ndarray
Shape = tuple[int, ...]


def named_arrays(model: PyTree) -> dict[str, Leaf]:
    """Every array of a model (or its shape, for a skeleton) by its public name."""
    names = {}
    for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_stack):
        prefix = _join(path)
        if not isinstance(node, Stack):
            names[prefix] = node
            continue
        for layer, group, place, repeat in _places(node):
            for inner, leaf in jax.tree_util.tree_leaves_with_path(node.groups[group][place]):
                names[_slash(prefix, str(layer), _join(inner))] = _take(leaf, repeat)
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node.final_norm):
            names[_slash(prefix, "final_norm", _join(inner))] = leaf
    return names


def with_arrays(model: PyTree, arrays: Mapping[str, Values]) -> PyTree:
    """A copy of a model, or a model from its skeleton, that holds the named arrays.

    **Raises:** `ValueError` that names the first array that is missing, not the model's, or of
    another shape.
    """
    require_arrays(shapes_of(named_arrays(model)), shapes_of(arrays))

    def fill(place: Place) -> Array:
        leaves = [jnp.asarray(arrays[name]) for name in place.names]
        return jnp.stack(leaves) if place.stacked else leaves[0]

    return jax.tree.map(fill, array_places(model))


def shapes_of(arrays: Mapping[str, Leaf]) -> dict[str, Shape]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def require_arrays(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """**Raises:** `ValueError` that names an array which is missing, extra or of another shape."""
    for name in sorted(expected.keys() ^ found.keys()):
        problem = "is missing" if name in expected else "is not one of this model's"
        raise ValueError(f"The array `{name}` {problem}. Was it saved from another config?")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"The array `{name}` has shape {found[name]}, where the model has {shape}. Was it "
                "saved from another config?"
            )


@dataclass(frozen=True)
class Place:
    """What a leaf of a model holds: the array of one name, or stacked those of several."""

    names: tuple[str, ...]
    stacked: bool


def array_places(model: PyTree) -> PyTree[Place]:
    """For every array of a model or its skeleton, what it holds by public name."""

    def mark(path, node):
        prefix = _join(path)
        return _mark(node, prefix) if _is_stack(node) else Place((prefix,), False)

    return jax.tree_util.tree_map_with_path(mark, model, is_leaf=_is_stack)


def array_names(model: PyTree) -> list[str]:
    """The public names of a model's arrays."""
    return [name for place in jax.tree.leaves(array_places(model)) for name in place.names]


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits a pattern, such as `"*/channel_mixer/*"`: `*` is any text, `/` included."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def matching(names: Sequence[str], patterns: Iterable[str]) -> frozenset[str]:
    """The names that fit a pattern.

    **Raises:** `ValueError` if a pattern fits none, with the names that are near it.
    """
    if isinstance(patterns, str):
        raise ValueError(f"Patterns come as a tuple: ({patterns!r},). Received {patterns!r}.")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, cutoff=0.0)
            listed = ", ".join(f"`{name}`" for name in near)
            raise ValueError(
                f"The pattern `{pattern}` fits no array of this model. Names near it: {listed}."
            )
    return frozenset(name for name in names if fits(name, patterns))


def _mark(stack: Stack, prefix: str) -> PyTree[Place]:
    layers: dict[tuple[int, int], list[int]] = {}
    for layer, group, place, _ in _places(stack):
        layers.setdefault((group, place), []).append(layer)

    def mark(path, leaf):
        match path[0].name, path[1:]:
            case "groups", (group, place, *inner):
                where = layers[group.idx, place.idx]
                names = (_slash(prefix, str(layer), _join(inner)) for layer in where)
                return Place(tuple(names), True)
            case field, inner:
                return Place((_slash(prefix, field, _join(inner)),), False)

    return jax.tree_util.tree_map_with_path(mark, stack)


def _places(stack: Stack) -> Iterator[tuple[int, int, int, int]]:
    """For every layer in order: its number, group, place in the pattern, and repeat."""
    layer = 0
    for group, (pattern, repeats) in enumerate(stack.config.groups):
        for repeat in range(repeats):
            for place in range(len(pattern)):
                yield layer, group, place, repeat
                layer += 1


def _take(leaf: Leaf, repeat: int) -> Leaf:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[repeat]


def _is_stack(node: PyTree) -> bool:
    return isinstance(node, Stack)


def _join(path) -> str:
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def _slash(*parts: str) -> str:
    return "/".join(part for part in parts if part)

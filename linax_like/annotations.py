"""What a value must be to fit an annotation: the part of Python's types that configs are made of."""

import types
import typing
from typing import Any, Literal


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says."""
    if hint is Any or hint is None:
        return hint is Any or value is None
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        hints = item_hints(hint, len(value)) if isinstance(value, tuple) else None
        return hints is not None and all(map(fits, value, hints))
    if not isinstance(hint, type):
        return True  # nothing that is known here
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def describe(hint: Any) -> str:
    """An annotation in words."""
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if hint is type(None):
        return "null"
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        article = "an" if hint.__name__[0] in "aeiouA" else "a"
        return f"{article} {hint.__name__}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(describe(h) for h in typing.get_args(hint))
    return str(hint).replace("typing.", "")


def alternatives(hint: Any) -> tuple:
    """The members of a union; of anything else itself."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def item_hints(hint: Any, length: int) -> tuple | None:
    """The annotations of the items of a tuple; None if a tuple that long does not fit `hint`."""
    if typing.get_origin(hint) is not tuple:
        return None
    hints = typing.get_args(hint)
    if len(hints) == 2 and hints[1] is Ellipsis:
        return (hints[0],) * length
    return hints if len(hints) == length else None

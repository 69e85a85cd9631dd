"""What the models share: checks at the edge, where a user's arrays come in."""

from typing import Literal

import equinox as eqx

from ..context import SequenceContext


Dtype = Literal["float32", "bfloat16"]


def open_context(
    model: eqx.Module, context: SequenceContext | None, uses: frozenset[str], length: int
) -> SequenceContext:
    """The context of a sequence that a model was given.

    **Raises:** `ValueError` if the sequence is empty, or if no layer uses a field that was given.
    """
    name = type(model).__name__
    if length == 0:
        raise ValueError(f"`{name}` was given an empty sequence: it needs at least one position.")
    context = SequenceContext() if context is None else context
    for field in ("positions", "timesteps", "condition", "condition_tokens", "condition_mask"):
        if getattr(context, field) is not None and field not in uses:
            raise ValueError(
                f"`{name}` was given `context.{field}`, but none of its layers uses it. Leave it out, "
                "or build the model with a layer that does."
            )
    return context

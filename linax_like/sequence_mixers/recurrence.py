"""What diagonal recurrences share: `h[t] = decay[t] ⊙ h[t-1] + drive[t]`, real or complex."""

from typing import Any, TypeVar

from jaxtyping import Array, Float

from ..context import SequenceContext
from ..ops.complex_pair import add, ComplexPair, multiply
from ..ops.linear_scan import Coefficients, final_state, linear_scan
from ..precision import cast_like
from .base import keep_at_padding


Parts = TypeVar("Parts", Float[Array, "..."], ComplexPair)


def scan_states(
    decay: Coefficients, drive: Parts, state: Parts, context: SequenceContext
) -> tuple[Parts, Parts]:
    """The state after all positions, and those of all.

    - `decay`: without the axis of time if it is constant.
    """
    before: Any = cast_like(state, drive)
    states = linear_scan(
        decay,
        drive,
        before,
        resets=context.resets(),
        mask=context.mask,
        axis_name=context.axis_name,
    )
    return final_state(states, before, axis_name=context.axis_name), states


def step_state(decay: Coefficients, drive: Parts, state: Parts, context: SequenceContext) -> Parts:
    """The state one position later."""
    before: Any = cast_like(state, drive)
    decayed: Any = multiply(decay, context.forget(before))
    return keep_at_padding(context, add(decayed, drive), before)

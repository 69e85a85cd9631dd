"""What recurrences with gates share: `h[t] = decay[t] ⊙ h[t-1] + drive[t]`, one real state."""

from jaxtyping import Array, Float

from ..context import SequenceContext
from ..ops.linear_scan import final_state, linear_scan
from ..precision import cast_like
from .base import keep_at_padding


States = Float[Array, "time state"]
State = Float[Array, " state"]


def scan_states(
    decay: States, drive: States, state: State, context: SequenceContext
) -> tuple[State, States]:
    """The state after all positions, and those of all."""
    state = cast_like(state, drive)
    states = linear_scan(
        decay,
        drive,
        state,
        resets=context.resets(),
        mask=context.mask,
        axis_name=context.axis_name,
    )
    return final_state(states, state, axis_name=context.axis_name), states


def step_state(decay: State, drive: State, state: State, context: SequenceContext) -> State:
    """The state one position later."""
    state = cast_like(state, drive)
    return keep_at_padding(context, decay * context.forget(state) + drive, state)

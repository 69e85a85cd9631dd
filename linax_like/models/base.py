"""What the models share: checks at the edge, where a user's arrays come in, and what generates text."""

import abc
from typing import Literal

import equinox as eqx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..context import SequenceContext
from ..heads import Logits
from ..stack import StackState
from ..types import Signal, Token, Tokens


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


def last_positions(
    model: eqx.Module, x: Signal, num_last_tokens: int | None
) -> Float[Array, "last features"]:
    """Those whose logits are wanted; all by default.

    **Raises:** `ValueError` if there are not so many.
    """
    count = len(x) if num_last_tokens is None else num_last_tokens
    if num_last_tokens is not None and not 0 < count <= len(x):
        raise ValueError(
            f"`num_last_tokens` must be from 1 to the {len(x)} tokens that "
            f"`{type(model).__name__}` was given. Received {num_last_tokens}."
        )
    return x[len(x) - count :]


class AbstractLanguageModel(eqx.Module):
    """What can continue a sequence of tokens."""

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """How many tokens it knows; logits beyond are of none."""

    @property
    @abc.abstractmethod
    def causal(self) -> bool:
        """Whether no output depends on a later token."""

    @abc.abstractmethod
    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StackState:
        """The state before the first token of at most `max_length`."""

    @abc.abstractmethod
    def prefill(
        self,
        state: StackState,
        tokens: Tokens,
        *,
        context: SequenceContext | None = None,
        num_last_tokens: int | None = None,
    ) -> tuple[StackState, Logits]:
        """Reads many tokens at once; `num_last_tokens` leaves out the logits of those before."""

    @abc.abstractmethod
    def step(
        self, state: StackState, token: Token, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Logits]:
        """Reads one token."""

"""The rows of a batch while they are continued, and what every way to continue them shares."""

from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
from jax.nn import logsumexp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..context import SequenceContext
from ..models import AbstractLanguageModel, StreamLanguageModel
from ..stack import StackState
from ..types import Mask, Token, Tokens
from .sampling import adjust, draw, Logits, Sampling, Seen


Prefix = dict[str, Array]  # raw streams of other modalities


class Setup(NamedTuple):
    """What stays the same from the first token to the last.

    - `draft`: a model that proposes `draft_length` tokens at a time; None for none.
    - `stop_tokens`: a row ends with the first of these.
    """

    model: AbstractLanguageModel
    draft: AbstractLanguageModel | None
    draft_length: int
    sampling: Sampling
    stop_tokens: Int[Array, " stops"]


class Row(NamedTuple):
    """One text being continued.

    - `state`, `draft_state`: after everything before `last`, the newest token.
    - `seen`: None unless repetition is penalised.
    - `tokens`, `log_probabilities`: room for what is generated; so far the first `length` are.
    """

    key: PRNGKeyArray
    state: StackState
    draft_state: StackState | None
    last: Token
    seen: Seen | None
    tokens: Int[Array, " room"]
    log_probabilities: Float[Array, " room"]
    length: Int[Array, ""]
    done: Bool[Array, ""]


def open_row(
    setup: Setup,
    key: PRNGKeyArray,
    prompt: Tokens,
    mask: Mask | None,
    prefix: Prefix | None,
    length: int,
    padding: Token,
) -> Row:
    """Reads a prompt, after what comes before it, and draws the first token."""
    context = SequenceContext(mask=mask)
    capacity = len(prompt) + length - 1  # the last token is not read
    if (
        setup.draft is not None
    ):  # which may run ahead of a row's end, and once more after it has ended
        capacity += 1 + 2 * (setup.draft_length + 1)
    state, output = setup.model.prefill(
        _start(setup.model, prefix, capacity), prompt, context=context, num_last_tokens=1
    )
    draft_state = None
    if setup.draft is not None:
        draft_state = _start(setup.draft, prefix, capacity)
        draft_state, _ = setup.draft.prefill(draft_state, prompt, context=context)
    logits = known(setup.model, output.logits[-1])
    seen = None
    if setup.sampling.repetition_penalty is not None:
        real = jnp.ones(prompt.shape, bool) if mask is None else mask
        seen = jnp.zeros(logits.shape, bool).at[prompt].max(real)
    row = Row(
        key=key,
        state=state,
        draft_state=draft_state,
        last=prompt[-1],
        seen=seen,
        tokens=jnp.full((length,), padding, jnp.int32),
        log_probabilities=jnp.zeros((length,), logits.dtype),
        length=jnp.zeros((), jnp.int32),
        done=jnp.zeros((), bool),
    )
    return draw_one(setup, row, logits)


def step_row(setup: Setup, row: Row) -> Row:
    """Draws one token."""
    state, output = setup.model.step(row.state, row.last)
    return draw_one(setup, row._replace(state=state), known(setup.model, output.logits))


def draw_one(setup: Setup, row: Row, logits: Logits) -> Row:
    adjusted = adjust(logits, setup.sampling, row.seen)
    token = draw(jr.fold_in(row.key, row.length), adjusted)
    return record(setup, row, token[None], logits[None], jnp.ones((), jnp.int32))


def record(
    setup: Setup,
    row: Row,
    tokens: Int[Array, " new"],
    logits: Float[Array, "new vocabulary"],
    count: Int[Array, ""],
) -> Row:
    """The row with the first `count` of the new tokens, fewer where it ends.

    - `logits`: of the model at each token, as they were before `Sampling`.
    """
    index, room = jnp.arange(len(tokens)), len(row.tokens)
    stops = jnp.isin(tokens, setup.stop_tokens)
    stopped_before = jnp.cumsum(stops) > stops
    kept = (index < count) & (row.length + index < room) & ~stopped_before & ~row.done
    place = jnp.where(kept, row.length + index, room)  # beyond the room nothing is written
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    scores = chosen - logsumexp(logits, axis=-1)
    length = row.length + kept.sum(dtype=jnp.int32)
    last = jnp.where(kept.any(), tokens[kept.sum() - 1], row.last)
    return row._replace(
        last=last,
        seen=None if row.seen is None else row.seen.at[tokens].max(kept),
        tokens=row.tokens.at[place].set(tokens, mode="drop"),
        log_probabilities=row.log_probabilities.at[place].set(scores, mode="drop"),
        length=length,
        done=row.done | (stops & kept).any() | (length >= room),
    )


def known(model: AbstractLanguageModel, logits: Float[Array, "*time vocabulary"]) -> Array:
    """The logits of the tokens that there are: a vocabulary may be padded."""
    return logits[..., : model.vocab_size]


def _start(model: AbstractLanguageModel, prefix: Prefix | None, capacity: int) -> StackState:
    """The state before a prompt. What only reads tokens does not see what else there is."""
    if prefix is None or not isinstance(model, StreamLanguageModel):
        return model.init_state(capacity)
    return model.start_after(prefix, capacity)

"""Speculative decoding (Leviathan et al., 2023, https://arxiv.org/abs/2211.17192).

A draft q proposes x[1] … x[k]; the model p reads them all at once, and keeps

    x[i]        with probability min(1, p(x[i]) / q(x[i])), up to the first that it does not keep;
    then one    drawn from max(p - q, 0), normalised, in its place, or from p if all were kept.

Whatever q is, what comes out is distributed as p. A recurrent state cannot be cut back to the tokens
that were kept: the states from before the block read it again, with the rest as padding.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..context import SequenceContext
from ..models import AbstractLanguageModel
from ..stack import StackState
from .rows import known, record, Row, Setup
from .sampling import adjust, draw


def speculate_row(setup: Setup, row: Row) -> Row:
    """Draws between one token and `draft_length` and one."""
    draft, draft_state = setup.draft, row.draft_state
    assert draft is not None and draft_state is not None
    draft_key, accept_key, end_key = jr.split(jr.fold_in(row.key, row.length), 3)
    proposed, q, seen = _propose(setup, draft, draft_state, row, draft_key)
    block = jnp.concatenate([row.last[None], proposed])
    _, output = setup.model.prefill(row.state, block)
    logits = known(setup.model, output.logits)
    p = jax.vmap(lambda logits, seen: jax.nn.softmax(adjust(logits, setup.sampling, seen)))(
        logits, seen
    )
    accepted, end = _accept(accept_key, end_key, proposed, p, q)
    tokens = jnp.append(proposed, end).at[accepted].set(end)
    new = record(setup, row, tokens, logits, accepted + 1)
    read = SequenceContext(mask=jnp.arange(len(block)) < new.length - row.length)
    state, _ = setup.model.prefill(row.state, block, context=read)
    draft_state, _ = draft.prefill(draft_state, block, context=read)
    return new._replace(state=state, draft_state=draft_state)


def _propose(
    setup: Setup, draft: AbstractLanguageModel, state: StackState, row: Row, key: PRNGKeyArray
) -> tuple[
    Int[Array, " k"], Float[Array, "k vocabulary"], Bool[Array, "k_and_one vocabulary"] | None
]:
    """The draft's tokens, their distributions, and what was seen before each and after the last."""

    def propose(carry, key):
        state, token, seen = carry
        state, output = draft.step(state, token)
        adjusted = adjust(known(draft, output.logits), setup.sampling, seen)
        token = draw(key, adjusted)
        after = None if seen is None else seen.at[token].set(True)
        return (state, token, after), (token, jax.nn.softmax(adjusted), seen)

    start = state, row.last, row.seen
    keys = jr.split(key, setup.draft_length)
    (_, _, last_seen), (tokens, q, seen) = jax.lax.scan(propose, start, keys)
    join = lambda before, last: jnp.concatenate([before, last[None]])
    return tokens, q, jax.tree.map(join, seen, last_seen)


def _accept(
    accept_key: PRNGKeyArray,
    end_key: PRNGKeyArray,
    proposed: Int[Array, " k"],
    p: Float[Array, "k_and_one vocabulary"],
    q: Float[Array, "k vocabulary"],
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """How many proposals are kept, and the token that follows them."""
    at_proposed = lambda table: jnp.take_along_axis(table, proposed[:, None], axis=-1)[:, 0]
    kept = jr.uniform(accept_key, proposed.shape) * at_proposed(q) < at_proposed(p[:-1])
    accepted = jnp.cumprod(kept).sum(dtype=jnp.int32)
    beyond = jnp.concatenate([q, jnp.zeros_like(q[:1])])[accepted]  # after the last nothing is q's
    rest = jnp.maximum(p[accepted] - beyond, 0)
    rest = jnp.where(rest.sum() > 0, rest, p[accepted])  # p is q, up to rounding
    return accepted, draw(end_key, jnp.log(rest))

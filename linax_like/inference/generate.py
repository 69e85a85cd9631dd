"""Generation: read the prompts at once, then draw and step in one compiled loop."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from ..models import AbstractLanguageModel, MixtureOfTransformers, StreamLanguageModel
from ..types import Token
from .requests import check_models, check_options, check_prefix, Prompt, read_prompts
from .rows import open_row, Prefix, Row, Setup, step_row
from .sampling import Sampling
from .speculative import speculate_row


class Generation(NamedTuple):
    """What was generated; of several prompts, with an axis of them before.

    - `tokens`: the new tokens, padded after a row's end.
    - `lengths`: how many of them there are, the stop token included.
    - `log_probabilities`: of each token under the model itself, before temperature, penalty and cuts.
    """

    tokens: Int[Array, "*prompts length"]
    lengths: Int[Array, "*prompts"]
    log_probabilities: Float[Array, "*prompts length"]


def generate(
    model: AbstractLanguageModel | MixtureOfTransformers,
    prompts: Prompt | Sequence[Prompt],
    length: int,
    key: PRNGKeyArray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_tokens: Sequence[int] = (),
    padding: int = 0,
    prefix: Prefix | None = None,
    draft: AbstractLanguageModel | MixtureOfTransformers | None = None,
    draft_length: int = 4,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> Generation:
    """Continues one prompt, or several of any lengths, by at most `length` tokens each.

    - `model`: a `LanguageModel`; or a `MixtureOfTransformers`, whose one stream of tokens is continued.
    - `prompts`: the tokens of one prompt, or a sequence of such.
    - `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`: as in `Sampling`.
    - `stop_tokens`: a row ends with the first of these, and is filled up with `padding`.
    - `prefix`: of a mixture of transformers, the raw streams of other modalities that are read before
        the prompts, each with an axis of the prompts first.
    - `draft`: a smaller model that proposes `draft_length` tokens at a time, which the model then
        reads at once (speculative decoding). The distribution stays the model's.
    - `callback`: called with the index of a row and its new tokens, in order and as they come. The
        loop then returns to the host at every step: this works on every platform and over several
        devices, where a call from inside the compiled loop does not, and an exception ends it.

    What a row becomes depends on its own prompt, its index and the key alone. Compiled once for each
    longest prompt, number of prompts, `length`, `top_k` and `draft_length`.

    **Raises:** `ValueError` if a prompt is empty or holds a token that the model does not know, if an
    option is out of its range, or if a model is not causal.
    """
    if isinstance(model, MixtureOfTransformers):
        model = StreamLanguageModel.of(model)
    if isinstance(draft, MixtureOfTransformers):
        draft = StreamLanguageModel.of(draft)
    rows, single = read_prompts(prompts)
    check_prefix(model, prefix, len(rows))
    check_models(model, draft, rows, (*stop_tokens, padding))
    check_options(length, temperature, top_k, top_p, min_p, repetition_penalty, draft_length)
    number = lambda value: None if value is None else jnp.float32(value)
    penalty = None if repetition_penalty == 1 else jnp.float32(repetition_penalty)
    setup = Setup(
        model,
        draft,
        0 if draft is None else draft_length,
        Sampling(penalty, jnp.float32(temperature), top_k, number(top_p), number(min_p)),
        jnp.asarray(tuple(stop_tokens), jnp.int32),
    )
    keys, (tokens, mask) = _row_keys(key, len(rows)), _align(rows)
    state = _open(setup, keys, tokens, mask, prefix, length, jnp.int32(padding))
    if callback is None:
        state = _advance(setup, state, jnp.int32(length))
    else:
        state = _stream(setup, state, callback)
    done = Generation(state.tokens, state.length, state.log_probabilities)
    return jax.tree.map(lambda leaf: leaf[0], done) if single else done


@eqx.filter_jit
def _open(
    setup: Setup,
    keys: Key[Array, " rows"],
    prompts: Int[Array, "rows time"],
    mask: Bool[Array, "rows time"] | None,
    prefix: Prefix | None,
    length: int,
    padding: Token,
) -> Row:
    def start(key, prompt, mask, prefix):
        return open_row(setup, key, prompt, mask, prefix, length, padding)

    return jax.vmap(start)(keys, prompts, mask, prefix)


@eqx.filter_jit
def _advance(setup: Setup, rows: Row, rounds: Int[Array, ""]) -> Row:
    """Continues the rows, `rounds` times or until all have ended."""
    advance = partial(step_row if setup.draft is None else speculate_row, setup)

    def going_on(carry):
        round, rows = carry
        return (round < rounds) & ~jnp.all(rows.done)

    def once(carry):
        round, rows = carry
        return round + 1, jax.vmap(advance)(rows)

    return jax.lax.while_loop(going_on, once, (jnp.zeros((), jnp.int32), rows))[1]


def _stream(setup: Setup, rows: Row, callback: Callable[[int, np.ndarray], None]) -> Row:
    told = np.zeros(rows.length.shape, int)
    while True:
        tokens, lengths, done = map(np.asarray, (rows.tokens, rows.length, rows.done))
        for index in np.flatnonzero(lengths > told):
            callback(int(index), tokens[index, told[index] : lengths[index]])
        if done.all():
            return rows
        told = lengths
        rows = _advance(setup, rows, jnp.int32(1))


def _align(rows: list[np.ndarray]) -> tuple[Array, Array | None]:
    """The prompts as one array whose last column is the last token of each, and its mask."""
    longest = max(map(len, rows))
    tokens = np.stack([np.pad(row, (longest - len(row), 0)) for row in rows])
    starts = np.array([longest - len(row) for row in rows])
    if not starts.any():
        return jnp.asarray(tokens, jnp.int32), None
    return jnp.asarray(tokens, jnp.int32), jnp.arange(longest) >= starts[:, None]


def _row_keys(key: PRNGKeyArray, count: int) -> Key[Array, " rows"]:
    """A key for each row, of the kind that draws the same under `jax.vmap` as alone."""
    base = jr.wrap_key_data(jr.bits(key, (2,), "uint32"), impl="threefry2x32")
    return jax.vmap(jr.fold_in, (None, 0))(base, jnp.arange(count))

"""From logits to a token: temperature, top-k (https://arxiv.org/abs/1805.04833), nucleus sampling
(https://arxiv.org/abs/1904.09751), min-p (https://arxiv.org/abs/2407.01082), and a penalty on tokens
that were there before (https://arxiv.org/abs/1909.05858)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..precision import upcast
from ..types import Scalar, Token


Logits = Float[Array, " vocabulary"]
Seen = Bool[Array, " vocabulary"]  # True at tokens of the prompt and of what was generated


class Sampling(NamedTuple):
    """How a distribution is changed before a token is drawn from it, in this order.

    - `repetition_penalty`: divides positive logits of tokens seen before, multiplies negative ones;
        above 1 discourages repetition.
    - `temperature`: divides the logits; below 1 sharpens, and 0 takes the most likely token.
    - `top_k`: keep the `top_k` most likely tokens, and what is as likely as the last of them.
    - `top_p`: keep the fewest tokens whose probabilities sum to `top_p`.
    - `min_p`: keep the tokens at least `min_p` times as likely as the most likely one.
    """

    repetition_penalty: Scalar | float | None = None
    temperature: Scalar | float = 1.0
    top_k: int | None = None
    top_p: Scalar | float | None = None
    min_p: Scalar | float | None = None


def sample(
    key: PRNGKeyArray,
    logits: Logits,
    *,
    temperature: Scalar | float = 1.0,
    top_k: int | None = None,
    top_p: Scalar | float | None = None,
    min_p: Scalar | float | None = None,
) -> Token:
    """Draws a token from the tempered distribution, cut to its most likely part, as in `Sampling`.

    **Raises:** `ValueError` if `top_k` is below 1.
    """
    return draw(key, adjust(logits, Sampling(None, temperature, top_k, top_p, min_p)))


def draw(key: PRNGKeyArray, logits: Logits) -> Token:
    return jr.categorical(key, logits).astype(jnp.int32)


def adjust(logits: Logits, sampling: Sampling, seen: Seen | None = None) -> Logits:
    """The logits of the distribution that is drawn from, minus infinity where it is zero."""
    logits = upcast(logits)
    if sampling.repetition_penalty is not None and seen is not None:
        penalty = sampling.repetition_penalty
        penalized = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, penalized, logits)
    most_likely = jnp.arange(logits.size) == jnp.argmax(logits)
    temperature = jnp.asarray(sampling.temperature, logits.dtype)
    below = logits - jnp.max(logits)  # a small temperature must not overflow
    logits = below / jnp.where(temperature > 0, temperature, 1.0)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    greedy = jnp.where(most_likely, jnp.zeros_like(logits), -jnp.inf)
    return jnp.where(temperature > 0, logits, greedy)


def keep_top_k(logits: Logits, top_k: int) -> Logits:
    """The logits, with minus infinity below the `top_k`-th highest."""
    if top_k < 1:
        raise ValueError(f"`top_k` must be at least 1. Received {top_k}.")
    lowest = jax.lax.top_k(logits, min(top_k, logits.size))[0][-1]
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def keep_top_p(logits: Logits, top_p: Scalar | float) -> Logits:
    """The logits, with minus infinity beyond the fewest highest whose probability reaches `top_p`."""
    order = jnp.argsort(-logits)
    probabilities = jax.nn.softmax(logits[order])
    before = jnp.cumsum(probabilities) - probabilities  # of the tokens that are more likely
    first = jnp.arange(logits.size) == 0  # is kept in any case
    kept = jnp.zeros(logits.shape, bool).at[order].set(first | (before < top_p))
    return jnp.where(kept | (jnp.asarray(top_p) >= 1), logits, -jnp.inf)


def keep_min_p(logits: Logits, min_p: Scalar | float) -> Logits:
    """The logits, with minus infinity where less likely than `min_p` times the most likely."""
    return jnp.where(logits - jnp.max(logits) >= jnp.log(min_p), logits, -jnp.inf)

"""From logits to a token: temperature, top-k (https://arxiv.org/abs/1805.04833) and nucleus
sampling (https://arxiv.org/abs/1904.09751)."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ..types import Scalar, Token


Logits = Float[Array, " vocabulary"]


def sample(
    key: PRNGKeyArray,
    logits: Logits,
    *,
    temperature: Scalar | float = 1.0,
    top_k: int | None = None,
    top_p: Scalar | float | None = None,
) -> Token:
    """Draws a token from the tempered distribution, cut to its most likely part.

    - `temperature`: divides the logits; below 1 sharpens, and 0 takes the most likely token.
    - `top_k`: keep the `top_k` most likely tokens.
    - `top_p`: keep the fewest tokens whose probabilities sum to `top_p`.
    """
    greedy = jnp.argmax(logits)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    drawn = jr.categorical(key, logits)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


def keep_top_k(logits: Logits, top_k: int) -> Logits:
    """The logits, with minus infinity beyond the `top_k` highest."""
    lowest = jax.lax.top_k(logits, min(top_k, logits.size))[0][-1]
    return jnp.where(logits >= lowest, logits, -jnp.inf)


def keep_top_p(logits: Logits, top_p: Scalar | float) -> Logits:
    """The logits, with minus infinity beyond the fewest highest whose probability reaches `top_p`."""
    order = jnp.argsort(-logits)
    probabilities = jax.nn.softmax(logits[order])
    before = jnp.cumsum(probabilities) - probabilities  # of the tokens that are more likely
    kept = jnp.zeros(logits.shape, bool).at[order].set(before < top_p)
    return jnp.where(kept, logits, -jnp.inf)

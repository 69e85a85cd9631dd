"""Generation: read the prompt at once, then sample and step in one compiled loop."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from ..models import LanguageModel
from ..types import Scalar, Tokens
from .sampling import sample


def generate(
    model: LanguageModel,
    prompt: Tokens,
    length: int,
    key: PRNGKeyArray,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, " length"]:
    """Continues `prompt` by `length` tokens.

    - `temperature`, `top_k`, `top_p`: as for `sample`; temperature 0 is greedy.

    Compiled once for each length of prompt and continuation, and each `top_k`.

    **Raises:** `ValueError` if the prompt is empty or holds a token that the model does not know, if an
    option is out of its range, or if the model is not causal.
    """
    _check(model, prompt, length, temperature, top_k, top_p)
    cut = None if top_p is None else jnp.float32(top_p)
    return _generate(model, jnp.asarray(prompt), length, key, jnp.float32(temperature), top_k, cut)


@eqx.filter_jit
def _generate(
    model: LanguageModel,
    prompt: Tokens,
    length: int,
    key: PRNGKeyArray,
    temperature: Scalar,
    top_k: int | None,
    top_p: Scalar | None,
) -> Int[Array, " length"]:
    def step(carry, key):
        state, logits = carry
        token = sample(key, logits, temperature=temperature, top_k=top_k, top_p=top_p)
        state, output = model.step(state, token)
        return (state, output.logits), token

    state = model.init_state(len(prompt) + length)
    state, output = model.prefill(state, prompt)
    return jax.lax.scan(step, (state, output.logits[-1]), jr.split(key, length))[1]


def _check(model, prompt, length, temperature, top_k, top_p) -> None:
    vocabulary = model.config.vocab_size
    prompt = np.asarray(prompt)
    outside = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if prompt.size == 0:
        raise ValueError("`generate` needs a prompt of at least one token.")
    if outside.size > 0:
        raise ValueError(
            f"The prompt holds the token {outside[0]}, but this model knows the tokens 0 to "
            f"{vocabulary - 1}."
        )
    if length < 1:
        raise ValueError(f"`length` must be at least 1. Received {length}.")
    if not temperature >= 0:
        raise ValueError(f"`temperature` must be 0 (greedy) or positive. Received {temperature}.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"`top_k` must be at least 1. Received {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"`top_p` must be above 0 and at most 1. Received {top_p}.")
    if not model.stack.causal:
        raise ValueError("`generate` needs a causal model, but one of its sequence mixers is not.")

"""What a user may ask `generate` for: every mistake gets one sentence."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from ..models import AbstractLanguageModel, StreamLanguageModel
from .rows import Prefix


Prompt = np.ndarray | jax.Array | Sequence[int]


def read_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[list[np.ndarray], bool]:
    """The prompts as arrays, and whether it was a single one, not a sequence of them."""
    if isinstance(prompts, np.ndarray | jax.Array):
        prompts = list(np.atleast_1d(np.asarray(prompts)))
    if not isinstance(prompts, Sequence) or len(prompts) == 0:
        raise ValueError("`generate` needs a prompt of at least one token.")
    single = np.ndim(prompts[0]) == 0
    rows = [np.asarray(prompts)] if single else [np.asarray(prompt) for prompt in prompts]
    for row in rows:
        if row.ndim != 1 or row.size == 0:
            raise ValueError(
                "`generate` needs prompts of at least one token, each an array of shape (time,). "
                f"Received one of shape {row.shape}."
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(
                f"A prompt must hold integers, the numbers of tokens. Received {row.dtype}. Encode "
                "text with a tokenizer first."
            )
    return rows, single


def check_models(
    model: AbstractLanguageModel,
    draft: AbstractLanguageModel | None,
    prompts: list[np.ndarray],
    other_tokens: Iterable[int],
) -> None:
    """Checks that the model can continue these prompts, and the draft can propose to it."""
    vocabulary = model.vocab_size
    tokens = np.concatenate([*prompts, np.asarray(tuple(other_tokens), int)])
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if outside.size > 0:
        raise ValueError(
            f"`generate` was given the token {outside[0]}, but this model knows the tokens 0 to "
            f"{vocabulary - 1}."
        )
    if draft is not None and draft.vocab_size != vocabulary:
        raise ValueError(
            f"`draft` knows {draft.vocab_size} tokens and the model {vocabulary}: both must "
            "have one vocabulary."
        )
    for name, one in (("a causal model", model), ("a causal `draft`", draft)):
        if one is not None and not one.causal:
            raise ValueError(
                f"`generate` needs {name}, but one of its sequence mixers is not causal."
            )


def check_prefix(model: AbstractLanguageModel, prefix: Prefix | None, rows: int) -> None:
    """Checks that the model reads other streams, and that each prompt has its own."""
    if prefix is None:
        return
    if not isinstance(model, StreamLanguageModel):
        raise ValueError(
            f"`prefix` holds streams of other modalities, but a `{type(model).__name__}` reads only "
            "tokens: put them in front of the prompts."
        )
    for name, stream in prefix.items():
        if len(stream) != rows:
            raise ValueError(
                f"`prefix[{name!r}]` must have an axis of the {rows} prompts first. Received "
                f"{stream.shape}."
            )


def check_options(
    length: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    draft_length: int,
) -> None:
    """Checks that every option is in its range."""
    finite = lambda value: np.isfinite(value) and value > 0
    positive = "positive and finite"
    for name, value, valid, law in (
        ("length", length, length >= 1, "at least 1"),
        ("temperature", temperature, temperature == 0 or finite(temperature), f"0 or {positive}"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1"),
        ("min_p", min_p, min_p is None or 0 < min_p <= 1, "above 0 and at most 1"),
        ("repetition_penalty", repetition_penalty, finite(repetition_penalty), positive),
        ("draft_length", draft_length, draft_length >= 1, "at least 1"),
    ):
        if not valid:
            raise ValueError(f"`{name}` must be {law}. Received {value}.")

"""Language model: token embedding, stack, logits over the vocabulary."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from ..config import AbstractConfig, require_choice, require_positive
from ..context import advance, advance_one, SequenceContext
from ..encoders import TokenEmbedding, TokenEmbeddingConfig
from ..heads import LanguageModelHead, LanguageModelHeadConfig, Logits
from ..initializers import split
from ..stack import Stack, StackConfig, StackState
from ..types import no_aux, Token, Tokens
from .base import Dtype, open_context


@dataclass(frozen=True)
class LanguageModelConfig(AbstractConfig):
    """A token embedding, a stack, and a head that may share the embedding's table.

    - `vocab_size`: number of tokens; 256 for bytes.
    - `features`: width of the residual stream.
    - `dtype`: of the residual stream. Parameters are float32 in any case.
    """

    vocab_size: int
    features: int
    stack: StackConfig
    embedding: TokenEmbeddingConfig = TokenEmbeddingConfig()
    head: LanguageModelHeadConfig = LanguageModelHeadConfig()
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_positive(self, "vocab_size", "features")
        require_choice(self, "dtype")

    def build(self, key: PRNGKeyArray) -> "LanguageModel":
        return LanguageModel(self, key)


class LanguageModel(eqx.Module):
    """Maps one sequence of tokens to logits for each position's next token."""

    config: LanguageModelConfig = eqx.field(static=True)
    embedding: TokenEmbedding
    stack: Stack
    head: LanguageModelHead

    def __init__(self, cfg: LanguageModelConfig, key: PRNGKeyArray):
        embedding_key, stack_key, head_key = split(key, 3)
        self.config = cfg
        self.embedding = cfg.embedding.build(cfg.vocab_size, cfg.features, embedding_key)
        self.stack = cfg.stack.build(cfg.features, stack_key)
        self.head = cfg.head.build(cfg.features, cfg.vocab_size, head_key)

    def __call__(
        self,
        tokens: Tokens,
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> Logits:
        """Logits `(time, vocab_size)`.

        - `key`: turns dropout on, in training.
        """
        context = self._open(context, len(tokens))
        x, aux = self.stack(self._embed(tokens, context), key, context=context)
        return Logits(self.head(x, self.embedding.table), aux)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StackState:
        """The state before the first token of at most `max_length`.

        - `dtype`: of cached activations; by default that of the residual stream.
        """
        return self.stack.init_state(max_length, dtype or jnp.dtype(self.config.dtype))

    def prefill(
        self, state: StackState, tokens: Tokens, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Logits]:
        """Reads many tokens at once."""
        context = self._open(context, len(tokens))
        _, context = advance(state.cursor, context, len(tokens))
        state, x = self.stack.prefill(state, self._embed(tokens, context), context=context)
        return state, Logits(self.head(x, self.embedding.table), no_aux())

    def step(
        self, state: StackState, token: Token, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Logits]:
        """Reads one token. The context holds the scalars of its position."""
        context = self._open(context, 1)
        _, context = advance_one(state.cursor, context)
        here = context.map_time(lambda value: value[None])
        state, x = self.stack.step(state, self._embed(token[None], here)[0], context=context)
        return state, Logits(self.head(x, self.embedding.table), no_aux())

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass over `(time,)` tokens."""
        head = 2 * spatial_dims[0] * self.config.features * self.config.vocab_size
        stack = self.stack.flop_count(spatial_dims, inference)
        return stack + (head if inference else 3 * head)

    def _open(self, context: SequenceContext | None, length: int) -> SequenceContext:
        return open_context(self, context, self.embedding.uses | self.stack.uses, length)

    def _embed(self, tokens: Tokens, context: SequenceContext):
        return self.embedding(tokens, context=context).astype(jnp.dtype(self.config.dtype))

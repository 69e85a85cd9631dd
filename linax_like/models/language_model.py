"""Language model: token embedding, stack, logits over the vocabulary."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Key, PRNGKeyArray

from ..config import AbstractConfig, require_choice, require_positive
from ..context import advance, advance_one, SequenceContext
from ..encoders import TokenEmbedding, TokenEmbeddingConfig
from ..heads import LanguageModelHead, LanguageModelHeadConfig, Logits
from ..initializers import split
from ..ops.cross_entropy import SummedLoss
from ..positions import LearnedPositions
from ..precision import wide
from ..sequence_mixers.learned_length import require_state_length
from ..stack import Stack, StackConfig, StackState
from ..types import Aux, no_aux, Signal, Token, Tokens
from .base import AbstractLanguageModel, Dtype, last_positions, open_context


@dataclass(frozen=True)
class LanguageModelConfig(AbstractConfig):
    """A token embedding, a stack, and a head that may share the embedding's table.

    - `vocab_size`: number of tokens; 256 for bytes.
    - `features`: width of the residual stream.
    - `dtype`: of the residual stream. Parameters are float32 in any case.
    - `pad_vocab_size_multiple`: the table and the logits get rows up to a multiple of this, which
        divides over devices and suits their matrix units. No token has them: their logits are minus
        infinity.
    """

    vocab_size: int
    features: int
    stack: StackConfig
    embedding: TokenEmbeddingConfig = TokenEmbeddingConfig()
    head: LanguageModelHeadConfig = LanguageModelHeadConfig()
    dtype: Dtype = "float32"
    pad_vocab_size_multiple: int = 1

    def __post_init__(self):
        require_positive(self, "vocab_size", "features", "pad_vocab_size_multiple")
        require_choice(self, "dtype")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the table, and width of the logits."""
        return -(-self.vocab_size // self.pad_vocab_size_multiple) * self.pad_vocab_size_multiple

    def build(self, key: PRNGKeyArray) -> "LanguageModel":
        return LanguageModel(self, key)


class LanguageModel(AbstractLanguageModel):
    """Maps one sequence of tokens to logits for each position's next token."""

    config: LanguageModelConfig = eqx.field(static=True)
    embedding: TokenEmbedding
    stack: Stack
    head: LanguageModelHead

    def __init__(self, cfg: LanguageModelConfig, key: PRNGKeyArray):
        embedding_key, stack_key, head_key = split(key, 3)
        self.config = cfg
        rows = cfg.padded_vocab_size
        self.embedding = cfg.embedding.build(rows, cfg.features, embedding_key)
        self.stack = cfg.stack.build(cfg.features, stack_key)
        self.head = cfg.head.build(cfg.features, rows, head_key)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def causal(self) -> bool:
        return self.stack.causal

    def __call__(
        self,
        tokens: Tokens,
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
        num_last_tokens: int | None = None,
    ) -> Logits:
        """Logits `(time, vocabulary)`.

        - `key`: turns dropout on, in training.
        - `num_last_tokens`: the logits of the last so many positions only, padding counted.
        """
        x, aux = self.features(tokens, key, context=context)
        return Logits(self._logits(x, num_last_tokens), aux)

    def features(
        self,
        tokens: Tokens,
        key: PRNGKeyArray | None = None,
        *,
        context: SequenceContext | None = None,
    ) -> tuple[Signal, Aux]:
        """What the head reads: the last residual stream."""
        context = self._open(context, len(tokens))
        return self.stack(self._embed(tokens, context), key, context=context)

    def init_state(
        self,
        max_length: int,
        dtype: DTypeLike | None = None,
        *,
        sharding: jax.sharding.Sharding | None = None,
    ) -> StackState:
        """The state before the first token of at most `max_length`.

        - `dtype`: of cached activations; by default that of the residual stream.
        - `sharding`: where its arrays go; by default where JAX puts them.

        **Raises:** `ValueError` if a layer, or the embedding, knows fewer positions.
        """
        positions = self.embedding.positions
        if isinstance(positions, LearnedPositions):
            require_state_length(positions, max_length, positions.config.max_length)
        state = self.stack.init_state(max_length, dtype or jnp.dtype(self.config.dtype))
        return state if sharding is None else jax.device_put(state, sharding)

    def prefill(
        self,
        state: StackState,
        tokens: Tokens,
        *,
        context: SequenceContext | None = None,
        num_last_tokens: int | None = None,
    ) -> tuple[StackState, Logits]:
        """Reads many tokens at once; `num_last_tokens` as in a call."""
        context = self._open(context, len(tokens))
        _, context = advance(state.cursor, context, len(tokens))
        state, x = self.stack.prefill(state, self._embed(tokens, context), context=context)
        return state, Logits(self._logits(x, num_last_tokens), no_aux())

    def step(
        self, state: StackState, token: Token, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Logits]:
        """Reads one token. The context holds the scalars of its position."""
        context = self._open(context, 1)
        _, context = advance_one(state.cursor, context)
        here = context.map_time(lambda value: value[None])
        state, x = self.stack.step(state, self._embed(token[None], here)[0], context=context)
        return state, Logits(self._logits(x[None], None)[0], no_aux())

    @property
    def complexity(self) -> str:
        """How the work grows; depth, and the sizes of input and output, are constants."""
        return self.stack.complexity

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass over `(time,)` tokens."""
        parts = (self.embedding, self.stack, self.head)
        return sum(part.flop_count(spatial_dims, inference) for part in parts)

    def _open(self, context: SequenceContext | None, length: int) -> SequenceContext:
        return open_context(self, context, self.embedding.uses | self.stack.uses, length)

    def _embed(self, tokens: Tokens, context: SequenceContext) -> Signal:
        if self.config.padded_vocab_size > self.config.vocab_size:
            tokens = wide(tokens)
            tokens = jnp.where(tokens < self.config.vocab_size, tokens, -1)  # gives NaN
        return self.embedding(tokens, context=context).astype(jnp.dtype(self.config.dtype))

    def _logits(
        self, x: Signal, num_last_tokens: int | None
    ) -> Float[Array, "positions vocabulary"]:
        logits = self.head(last_positions(self, x, num_last_tokens), self.embedding.table)
        if logits.shape[-1] == self.config.vocab_size:
            return logits
        return jnp.where(jnp.arange(logits.shape[-1]) < self.config.vocab_size, logits, -jnp.inf)


def token_loss(
    model: LanguageModel,
    tokens: Integer[Array, "batch time"],
    labels: Integer[Array, "batch time"],
    keys: Key[Array, " batch"] | None = None,
    *,
    context: SequenceContext | None = None,
    mask: Bool[Array, "batch time"] | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> tuple[SummedLoss, Aux]:
    """The cross-entropy of a batch, summed, with its gradient and without all logits at once.

    - `labels`: for each position the token that is to be predicted there.
    - `keys`: one per example, which turns dropout on.
    - `context`: of the whole batch: every array has a leading axis of examples.
    - `mask`: False where a label does not count; by default `context.mask`.
    - `z_loss`, `chunk`: as for `linear_cross_entropy`.

    The second result is the `Aux` of every example.
    """
    read = lambda tokens, key, context: model.features(tokens, key, context=context)
    x, aux = jax.vmap(read)(tokens, keys, context)
    if mask is None and context is not None:
        mask = context.mask
    sums = model.head.loss(
        x,
        model.embedding.table,
        labels,
        mask=mask,
        vocab_size=model.config.vocab_size,
        z_loss=z_loss,
        chunk=chunk,
    )
    return sums, aux

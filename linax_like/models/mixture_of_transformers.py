"""Mixture of transformers: an encoder and a head for every modality, and one stack for all
(https://arxiv.org/abs/2411.04996).
"""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Key, PRNGKeyArray

from ..config import AbstractConfig, require, require_choice, require_positive
from ..context import advance, SequenceContext
from ..encoders import AbstractEncoder, AbstractEncoderConfig, TokenEmbedding, TokenEmbeddingConfig
from ..heads import (
    AbstractHead,
    AbstractHeadConfig,
    LanguageModelHead,
    LanguageModelHeadConfig,
    Logits,
)
from ..initializers import split
from ..ops.cross_entropy import SummedLoss
from ..stack import Stack, StackConfig, StackState
from ..streams import require_known, Streams, StreamsContext, StreamsCursor
from ..types import Aux, no_aux, Token, Tokens
from .base import AbstractLanguageModel, Dtype, last_positions


@dataclass(frozen=True)
class ModalityConfig(AbstractConfig):
    """One of the streams: how its raw input is read, and what is predicted for its positions.

    - `in_features`: the vocabulary, for tokens; else the width of a frame, or a pixel's channels.
    - `encoder`: from raw input to a sequence of features; tokens have a `TokenEmbeddingConfig`.
    - `head`: logits of tokens (`LanguageModelHeadConfig`), or any other head; None for none.
    - `out_features`: how many values the head yields; by default `in_features`.
    """

    in_features: int
    encoder: AbstractEncoderConfig = TokenEmbeddingConfig()
    head: LanguageModelHeadConfig | AbstractHeadConfig | None = LanguageModelHeadConfig()
    out_features: int | None = None

    def __post_init__(self):
        require_positive(self, "in_features")
        outputs = self.out_features
        require(outputs is None or outputs > 0, self, "out_features", "positive or None")
        tokens = isinstance(self.encoder, TokenEmbeddingConfig)
        if isinstance(self.head, LanguageModelHeadConfig):
            law = "a `TokenEmbeddingConfig` with a `LanguageModelHeadConfig`, whose labels are tokens"
            require(tokens, self, "encoder", law)
            law = "left out with a `LanguageModelHeadConfig`, which has the vocabulary's size"
            require(outputs is None, self, "out_features", law)


@dataclass(frozen=True)
class MixtureOfTransformersConfig(AbstractConfig):
    """Streams of several modalities through one stack.

    - `features`: width of the residual streams.
    - `modalities`: names, each with its config, in the order in which the streams come.
    - `stack`: of blocks for several streams, such as `MoTBlockConfig`, with the same names.
    - `dtype`: of the residual streams. Parameters are float32 in any case.
    """

    features: int
    modalities: tuple[tuple[str, ModalityConfig], ...]
    stack: StackConfig
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_positive(self, "features")
        require_choice(self, "dtype")

    def build(self, key: PRNGKeyArray) -> "MixtureOfTransformers":
        return MixtureOfTransformers(self, key)


class StreamsOutput(NamedTuple):
    """What heads yield, by modality; one without a head has neither.

    - `logits`: of tokens' heads, over the vocabulary.
    - `values`: of other heads.
    """

    logits: dict[str, Float[Array, "..."]]
    values: dict[str, Float[Array, "..."]]
    aux: Aux


class MixtureOfTransformers(eqx.Module):
    """Maps the streams of one example to the outputs of their heads."""

    config: MixtureOfTransformersConfig = eqx.field(static=True)
    encoders: dict[str, AbstractEncoder]
    stack: Stack
    heads: dict[str, LanguageModelHead | AbstractHead]

    def __init__(self, cfg: MixtureOfTransformersConfig, key: PRNGKeyArray):
        stack_key, *keys = split(key, len(cfg.modalities) + 1)
        self.config = cfg
        self.stack = cfg.stack.build(cfg.features, stack_key)
        names = tuple(name for name, _ in cfg.modalities)
        if self.stack.modalities != names:
            raise ValueError(
                f"`MixtureOfTransformersConfig` has the modalities {names}, but the blocks of its "
                f"`stack` are for {self.stack.modalities}. Both must name the same, in one order."
            )
        self.encoders, self.heads = {}, {}
        for (name, modality), own in zip(cfg.modalities, keys, strict=True):
            encoder_key, head_key = split(own, 2)
            inputs, outputs = modality.in_features, modality.out_features
            self.encoders[name] = modality.encoder.build(inputs, cfg.features, encoder_key)
            if modality.head is not None:
                size = inputs if outputs is None else outputs
                self.heads[name] = modality.head.build(cfg.features, size, head_key)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The streams that there may be, in the order in which they come."""
        return tuple(name for name, _ in self.config.modalities)

    def __call__(
        self,
        streams: dict[str, Array],
        key: PRNGKeyArray | None = None,
        *,
        context: StreamsContext | None = None,
    ) -> StreamsOutput:
        """Outputs by modality for raw streams, one without a modality having none of it.

        - `key`: turns dropout on, in training.
        """
        x, aux = self.features(streams, key, context=context)
        return self._read_out(x, aux, context)

    def features(
        self,
        streams: dict[str, Array],
        key: PRNGKeyArray | None = None,
        *,
        context: StreamsContext | None = None,
    ) -> tuple[Streams, Aux]:
        """What the heads read: the last residual streams."""
        x = self._encode(streams, context, None)
        return self.stack(x, key, context=context)

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StackState:
        """The state before the first position of at most `max_length`, of all streams together."""
        return self.stack.init_state(max_length, dtype or jnp.dtype(self.config.dtype))

    def prefill(
        self,
        state: StackState,
        streams: dict[str, Array],
        *,
        context: StreamsContext | None = None,
    ) -> tuple[StackState, StreamsOutput]:
        """Reads many positions at once, which come after those read before."""
        state, x = self._advance(state, streams, context)
        return state, self._read_out(x, no_aux(), context)

    def step(
        self,
        state: StackState,
        streams: dict[str, Array],
        *,
        context: StreamsContext | None = None,
    ) -> tuple[StackState, StreamsOutput]:
        """Reads the next position, of the one modality in the dict. The context holds its scalars."""
        chunk = None if context is None else context.lift()
        x = self._encode({name: x[None] for name, x in streams.items()}, chunk, state.cursor)
        frames = {name: one[0] for name, one in x.items()}
        state, frames = self.stack.step(state, frames, context=context)
        output = self._read_out({name: y[None] for name, y in frames.items()}, no_aux(), chunk)
        logits, values = jax.tree.map(lambda y: y[0], (output.logits, output.values))
        return state, StreamsOutput(logits, values, output.aux)

    @property
    def complexity(self) -> str:
        """How the work grows; depth, and the sizes of input and output, are constants."""
        return self.stack.complexity

    def flop_count(self, lengths: dict[str, int], inference: bool = False) -> int:
        """Floating-point operations of one pass over so many positions of each modality."""
        count = self.stack.flop_count(lengths, inference)
        for name, time in lengths.items():
            parts = [self.encoders[name], *([self.heads[name]] if name in self.heads else [])]
            count += sum(part.flop_count((time,), inference) for part in parts)
        return count

    def _advance(
        self, state: StackState, streams: dict[str, Array], context: StreamsContext | None
    ) -> tuple[StackState, Streams]:
        """`prefill` without its heads: what they would read."""
        x = self._encode(streams, context, state.cursor)
        return self.stack.prefill(state, x, context=context)

    def _encode(
        self,
        streams: dict[str, Array],
        context: StreamsContext | None,
        cursor: StreamsCursor | None,
    ) -> Streams:
        """The residual streams before the first block."""
        require_known(self, self.modalities, streams)
        context = StreamsContext() if context is None else context
        dtype, encoded = jnp.dtype(self.config.dtype), {}
        for name, x in streams.items():
            encoder, here = self.encoders[name], context.of(name)
            if cursor is not None and "positions" in encoder.uses:
                _, here = advance(cursor.streams[name], here, len(x))
            y = encoder(x, context=here)
            encoded[name] = y.reshape(-1, y.shape[-1]).astype(dtype)
        return encoded

    def _read_out(self, x: Streams, aux: Aux, context: StreamsContext | None) -> StreamsOutput:
        context = StreamsContext() if context is None else context
        logits, values = {}, {}
        for name, y in x.items():
            head, encoder = self.heads.get(name), self.encoders[name]
            if isinstance(head, LanguageModelHead) and isinstance(encoder, TokenEmbedding):
                logits[name] = head(y, encoder.table)
            elif isinstance(head, AbstractHead):
                values[name] = head(y, aux, context=context.of(name))[0]
        return StreamsOutput(logits, values, aux)


class StreamLanguageModel(AbstractLanguageModel):
    """A mixture of transformers as a language model of one of its streams.

    - `modality`: the stream of tokens that is read and continued.
    """

    model: MixtureOfTransformers
    modality: str = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.model.heads.get(self.modality), LanguageModelHead):
            raise ValueError(
                f"`StreamLanguageModel` continues tokens: {self.modality!r} has no "
                f"`LanguageModelHead` in a model of {list(self.model.modalities)}."
            )

    @classmethod
    def of(cls, model: MixtureOfTransformers) -> "StreamLanguageModel":
        """That of the one stream which has logits of tokens."""
        heads = model.heads.items()
        names = [name for name, head in heads if isinstance(head, LanguageModelHead)]
        if len(names) != 1:
            raise ValueError(
                f"The streams of tokens that could be continued are {names}. Name one by "
                "`StreamLanguageModel(model, name)`."
            )
        return cls(model, names[0])

    @property
    def vocab_size(self) -> int:
        return dict(self.model.config.modalities)[self.modality].in_features

    @property
    def causal(self) -> bool:
        return self.model.stack.causal

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StackState:
        return self.model.init_state(max_length, dtype)

    def start_after(self, streams: dict[str, Array], max_length: int) -> StackState:
        """The state after raw streams, before at most `max_length` tokens."""
        encode = lambda streams: self.model._encode(streams, None, None)
        lengths = [len(x) for x in jax.eval_shape(encode, streams).values()]
        return self.model._advance(self.init_state(max_length + sum(lengths)), streams, None)[0]

    def prefill(
        self,
        state: StackState,
        tokens: Tokens,
        *,
        context: SequenceContext | None = None,
        num_last_tokens: int | None = None,
    ) -> tuple[StackState, Logits]:
        here = None if context is None else StreamsContext({self.modality: context})
        state, x = self.model._advance(state, {self.modality: tokens}, here)
        read = {self.modality: last_positions(self, x[self.modality], num_last_tokens)}
        output = self.model._read_out(read, no_aux(), None)
        return state, Logits(output.logits[self.modality], output.aux)

    def step(
        self, state: StackState, token: Token, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Logits]:
        here = None if context is None else StreamsContext({self.modality: context})
        state, output = self.model.step(state, {self.modality: token}, context=here)
        return state, Logits(output.logits[self.modality], output.aux)


def stream_losses(
    model: MixtureOfTransformers,
    streams: dict[str, Array],
    targets: dict[str, Array],
    keys: Key[Array, " batch"] | None = None,
    *,
    context: StreamsContext | None = None,
    masks: dict[str, Bool[Array, "batch ..."]] | None = None,
) -> tuple[dict[str, SummedLoss], Aux]:
    """The loss of every modality that has targets, summed over a batch.

    Tokens have the cross-entropy of their labels, other positions the squared error of their values.

    - `streams`, `targets`, `context`: of the whole batch: every array has a leading axis of examples.
        A label stands at the position that is to predict it.
    - `masks`: False where a target does not count; by default the streams' own masks. What a head
        pools into one target for each example has one number for each.

    The second result is the `Aux` of every example.
    """
    read = lambda streams, key, context: model.features(streams, key, context=context)
    x, aux = jax.vmap(read)(streams, keys, context)
    losses = {}
    for name, target in targets.items():
        padding = None if context is None else context.of(name).mask
        mask = padding if masks is None else masks.get(name, padding)
        losses[name] = _loss(model, name, x[name], target, mask, padding)
    return losses, aux


def _loss(
    model: MixtureOfTransformers,
    name: str,
    x: Float[Array, "batch time features"],
    target: Float[Array, "batch ..."] | Integer[Array, "batch time"],
    mask: Bool[Array, "batch ..."] | None,
    padding: Bool[Array, "batch time"] | None,
) -> SummedLoss:
    head, encoder = model.heads.get(name), model.encoders[name]
    if isinstance(head, LanguageModelHead) and isinstance(encoder, TokenEmbedding):
        return head.loss(x, encoder.table, target, mask=mask)
    if not isinstance(head, AbstractHead):
        raise ValueError(
            f"`stream_losses` was given targets for {name!r}, which has no head. Leave them out."
        )
    read = lambda x, padding: head(x, no_aux(), context=SequenceContext(mask=padding))[0]
    differences = jax.vmap(read)(x, padding) - target
    if (
        mask is not None and mask.ndim == differences.ndim - 1
    ):  # a pooled head has one for a sequence
        # Selected before it is squared, so that NaN in what does not count leaves no trace.
        differences = jnp.where(mask[..., None], differences, 0)
    total = jnp.sum(differences**2)
    return SummedLoss(total, total, jnp.zeros_like(total))

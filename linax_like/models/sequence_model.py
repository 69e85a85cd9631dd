"""Sequence model: encoder, stack, head. Classifiers and regressors of any kind of sequence."""

from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..config import AbstractConfig, require_choice, require_positive
from ..context import SequenceContext
from ..encoders import AbstractEncoder, AbstractEncoderConfig, LinearEncoderConfig
from ..heads import AbstractHead, AbstractHeadConfig, ClassificationHeadConfig, Logits, Values
from ..initializers import split
from ..stack import Stack, StackConfig
from .base import Dtype, open_context


@dataclass(frozen=True)
class SequenceModelConfig(AbstractConfig):
    """An encoder, a stack and a head.

    - `in_features`: width of the raw input (the vocabulary, for a token embedding).
    - `features`: width of the residual stream.
    - `out_features`: number of classes, or of values.
    - `dtype`: of the residual stream. Parameters are float32 in any case.
    """

    in_features: int
    features: int
    out_features: int
    stack: StackConfig
    encoder: AbstractEncoderConfig = LinearEncoderConfig()
    head: AbstractHeadConfig = ClassificationHeadConfig()
    dtype: Dtype = "float32"

    def __post_init__(self):
        require_positive(self, "in_features", "features", "out_features")
        require_choice(self, "dtype")

    def build(self, key: PRNGKeyArray) -> "SequenceModel":
        return SequenceModel(self, key)


class SequenceModel(eqx.Module):
    """Maps one raw sequence to the output of its head."""

    config: SequenceModelConfig = eqx.field(static=True)
    encoder: AbstractEncoder
    stack: Stack
    head: AbstractHead

    def __init__(self, cfg: SequenceModelConfig, key: PRNGKeyArray):
        encoder_key, stack_key, head_key = split(key, 3)
        self.config = cfg
        self.encoder = cfg.encoder.build(cfg.in_features, cfg.features, encoder_key)
        self.stack = cfg.stack.build(cfg.features, stack_key)
        self.head = cfg.head.build(cfg.features, cfg.out_features, head_key)

    def __call__(
        self, x: Array, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> Logits | Values:
        """Reads one sequence, shape `(time, in_features)`, or `(time,)` for tokens.

        - `key`: turns dropout on, in training.
        """
        context = open_context(self, context, self.encoder.uses | self.stack.uses, len(x))
        features = self.encoder(x, context=context).astype(jnp.dtype(self.config.dtype))
        features, aux = self.stack(features, key, context=context)
        return self.head(features, aux, context=context)

    @property
    def complexity(self) -> str:
        """How the work grows; depth, and the sizes of input and output, are constants."""
        return self.stack.complexity

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass over so many features along every axis."""
        parts = (self.encoder, self.stack, self.head)
        return sum(part.flop_count(spatial_dims, inference) for part in parts)

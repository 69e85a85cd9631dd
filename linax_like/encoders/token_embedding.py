"""Token embedding: a row of a table for every token."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..config import require_positive
from ..context import SequenceContext
from ..initializers import normal, split
from ..ops.take import take
from ..positions import AbstractPositions, AbstractPositionsConfig
from ..precision import wide
from ..types import Signal, Tokens
from .base import AbstractEncoder, AbstractEncoderConfig


@dataclass(frozen=True)
class TokenEmbeddingConfig(AbstractEncoderConfig):
    """A table of token vectors, to which a position vector may be added.

    - `positions`: an additive position encoding; none by default, since recurrent mixers and rotary
        attention know positions by themselves.
    - `init_std`: standard deviation of a fresh table. The default 1 suits pre-norm blocks.
    - `scale`: factor of the token vectors.
    """

    positions: AbstractPositionsConfig | None = None
    init_std: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        require_positive(self, "init_std", "scale")

    def build(self, in_features: int, out_features: int, key: PRNGKeyArray) -> "TokenEmbedding":
        return TokenEmbedding(in_features, out_features, self, key)


class TokenEmbedding(AbstractEncoder):
    """Maps tokens `(time,)` below `in_features` to `(time, out_features)`.

    A token outside the vocabulary gives NaN, so that it cannot pass unnoticed.
    """

    config: TokenEmbeddingConfig = eqx.field(static=True)
    table: Float[Array, "vocabulary features"]
    positions: AbstractPositions | None

    def __init__(
        self, in_features: int, out_features: int, cfg: TokenEmbeddingConfig, key: PRNGKeyArray
    ):
        table_key, position_key = split(key, 2)
        self.config = cfg
        self.table = normal(table_key, (in_features, out_features), cfg.init_std)
        positions = cfg.positions
        self.positions = None if positions is None else positions.build(out_features, position_key)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset() if self.positions is None else frozenset({"positions"})

    def __call__(self, x: Tokens, *, context: SequenceContext) -> Signal:
        if x.ndim != 1 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"`TokenEmbedding` takes one sequence of integer tokens, shape (time,). Received "
                f"{x.dtype.name}{list(x.shape)}. Use `jax.vmap` for a batch."
            )
        tokens = context.blank_padding(wide(x))
        features = self.config.scale * embed(self.table, tokens)
        if self.positions is not None:
            places = context.positions_from(jnp.zeros((), jnp.int32), len(x))
            features = features + self.positions(places)
        return context.blank_padding(features)

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        vocabulary, features = self.table.shape
        forward = (1 if self.positions is None else 2) * math.prod(spatial_dims) * features
        gradient = 2 * math.prod(spatial_dims) * vocabulary * features  # by the one-hot tokens
        return forward if inference else forward + gradient


@jax.custom_vjp
def embed(
    table: Float[Array, "vocabulary features"], tokens: Int[Array, " time"]
) -> Float[Array, "time features"]:
    """`table[tokens]`, with NaN for tokens outside the table.

    The gradient is a matrix product with the one-hot tokens: it partitions over any mesh, and on
    accelerators it beats the scattered additions of a gather's gradient.
    """
    return _embed_forward(table, tokens)[0]


def _embed_forward(table, tokens):
    features = jnp.where(_valid(table, tokens)[:, None], take(table, tokens), jnp.nan)
    return features, (table, tokens)


def _embed_backward(residuals, g):
    table, tokens = residuals
    one_hot = jax.nn.one_hot(tokens, len(table), dtype=g.dtype)
    return one_hot.T @ g, None


embed.defvjp(_embed_forward, _embed_backward)


def _valid(table, tokens):
    return (tokens >= 0) & (tokens < len(table))

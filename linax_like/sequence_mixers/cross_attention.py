"""Cross-attention: every position reads from a set of tokens, such as a text or a condition
(https://arxiv.org/abs/1706.03762).

    q[t] = W_q x[t]        k[s], v[s] = W_kv c[s]         for the tokens c
    y[t] = W_o Σ_s softmax(q[t] · k[s] / √head) v[s]
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..config import AbstractConfig, require_positive
from ..context import SequenceContext
from ..initializers import linear_weight, split
from ..ops.attention import attention
from ..precision import linear
from ..types import Grid
from .heads import head_sizes, join_heads, split_heads


@dataclass(frozen=True)
class CrossAttentionConfig(AbstractConfig):
    """Attention to tokens from elsewhere. They are a set: their order makes no difference.

    - `num_heads`: by default heads of 64 features, or the largest smaller power of two that divides
        the width.
    - `token_features`: width of the tokens; by default that of the positions which read them.
    - `max_tokens`: the most there are, padding included. More are an error, and work is counted for
        so many.
    """

    num_heads: int | None = None
    token_features: int | None = None
    max_tokens: int = 128

    def __post_init__(self):
        optional = ("num_heads", "token_features")
        given = [name for name in optional if getattr(self, name) is not None]
        require_positive(self, "max_tokens", *given)

    def build(self, in_features: int, key: PRNGKeyArray) -> "CrossAttention":
        return CrossAttention(in_features, self, key)


class CrossAttention(eqx.Module):
    """Positions of a sequence or a grid, or a single one, read from tokens.

    Of a single token every position reads the same; of none, or only padding, zeros.
    """

    config: CrossAttentionConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    token_features: int = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    q_proj: Float[Array, "features features"]
    kv_proj: Float[Array, "keys_values token_features"]
    out_proj: Float[Array, "features features"]

    def __init__(self, in_features: int, cfg: CrossAttentionConfig, key: PRNGKeyArray):
        q_key, kv_key, out_key = split(key, 3)
        self.config = cfg
        self.in_features = in_features
        self.token_features = cfg.token_features or in_features
        self.num_heads, _ = head_sizes(in_features, cfg, cfg.num_heads, None)
        self.q_proj = linear_weight(q_key, in_features, in_features)
        self.kv_proj = linear_weight(kv_key, self.token_features, 2 * in_features)
        self.out_proj = linear_weight(out_key, in_features, in_features)

    def __call__(
        self,
        x: Grid,
        tokens: Float[Array, "tokens token_features"],
        *,
        context: SequenceContext | None = None,
        token_mask: Bool[Array, " tokens"] | None = None,
    ) -> Grid:
        """What every position of one example reads.

        - `context`: of `x`; only its mask matters.
        - `token_mask`: False where a token is padding.
        """
        widths = self.in_features, self.token_features
        if tokens.ndim != 2 or (x.shape[-1], tokens.shape[-1]) != widths:
            raise ValueError(
                f"`CrossAttention` takes one example of shape (*space, {self.in_features}) and "
                f"tokens of shape (tokens, {self.token_features}). Received {x.shape} and "
                f"{tokens.shape}. Use `jax.vmap` for a batch, and `tokens[None]` for one vector."
            )
        if len(tokens) > self.config.max_tokens:
            raise ValueError(
                f"`CrossAttentionConfig(max_tokens={self.config.max_tokens})` was given "
                f"{len(tokens)} tokens. Build it for as many as there may be."
            )
        context = SequenceContext() if context is None else context
        x, tokens = context.blank_padding(x), tokens.astype(x.dtype)
        tokens = SequenceContext(mask=token_mask).blank_padding(tokens)
        q = split_heads(linear(x, self.q_proj), self.num_heads)
        k, v = jnp.split(linear(tokens, self.kv_proj), 2, axis=-1)
        k, v = split_heads(k, self.num_heads), split_heads(v, self.num_heads)
        y = attention(q.reshape(-1, *q.shape[-2:]), k, v, causal=False, mask=token_mask)
        y = linear(join_heads(y).reshape(x.shape), self.out_proj)
        return context.blank_padding(y)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass, for `max_tokens`."""
        space, tokens = math.prod(spatial_dims), self.config.max_tokens
        projections = space * (self.q_proj.size + self.out_proj.size) + tokens * self.kv_proj.size
        forward = 2 * projections + 4 * space * tokens * self.in_features
        return forward if inference else 3 * forward

"""What mixers with several heads share."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config import AbstractConfig
from ..norms import divide_by_rms
from ..precision import linear


def head_sizes(
    in_features: int, cfg: AbstractConfig, heads: int | None, head: int | None
) -> tuple[int, int]:
    """The number of heads and the size of one, where the config may have left either open.

    They then fill the width: with heads of 64, or the largest smaller power of two.
    """
    if heads is None and head is None:
        head = math.gcd(in_features, 64)
        require_width(
            head >= 8, cfg, in_features, "a width that is a multiple of 8, or `num_heads`"
        )
    if heads is None:
        assert head is not None
        require_width(in_features % head == 0, cfg, in_features, "a width that `head_dim` divides")
        heads = in_features // head
    if head is None:
        require_width(
            in_features % heads == 0, cfg, in_features, "a width that `num_heads` divides"
        )
        head = in_features // heads
    return heads, head


def key_and_value_sizes(
    in_features: int, cfg: AbstractConfig, heads: int, key: int | None, value: int | None
) -> tuple[int, int]:
    """The sizes of a key and of a value, where the config may have left either open.

    Values then fill the width, and a key is half as large as a value.
    """
    _, value = head_sizes(in_features, cfg, heads, value)
    if key is None:
        law = f"values of even size, not {value}, half of which is a key's; or `head_dim`"
        require_width(value % 2 == 0, cfg, in_features, law)
        key = value // 2
    return key, value


def require_width(condition: bool, cfg: AbstractConfig, in_features: int, needed: str) -> None:
    if not condition:
        raise ValueError(f"`{cfg}` needs {needed}. Received in_features={in_features}.")


def split_heads(
    x: Float[Array, "*time heads_head"], heads: int
) -> Float[Array, "*time heads head"]:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def split_qkv(
    x: Float[Array, "*time channels"], heads: int, head: int, value_heads: int
) -> tuple[Array, Array, Array]:
    """q and k, of size `head`, and v, by head."""
    q, k, v = jnp.split(x, (heads * head, 2 * heads * head), axis=-1)
    return split_heads(q, heads), split_heads(k, heads), split_heads(v, value_heads)


def join_heads(x: Float[Array, "*time heads head"]) -> Float[Array, "*time heads_head"]:
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def norm_of_heads(
    y: Float[Array, "*time heads head"], weight: Float[Array, " head"], eps: float
) -> Float[Array, "*time heads_head"]:
    """RMSNorm of every head, with the same weight, in at least float32."""
    normal = divide_by_rms(y, eps)
    return join_heads(normal * weight.astype(normal.dtype))


def read_out(
    y: Float[Array, "*time heads head"],
    x: Float[Array, "*time features"],
    norm: Float[Array, " head"] | None,
    eps: float,
    gate: Float[Array, "heads_head features"] | None,
    out: Float[Array, "features heads_head"],
) -> Float[Array, "*time features"]:
    """`out (RMSNorm(y) ⊙ silu(gate x))`, where the norm and the gate may be left out."""
    y = join_heads(y) if norm is None else norm_of_heads(y, norm, eps)
    if gate is not None:
        y = y * jax.nn.silu(linear(x, gate))
    return linear(y.astype(x.dtype), out)


def projection_flops(mixer: eqx.Module) -> int:
    """Of all matrices and short convolutions, at one position."""
    return sum(2 * leaf.size for leaf in jax.tree.leaves(mixer) if leaf.ndim == 2)


def linear_attention_flops(chunk: int, key: int, value: int) -> int:
    """Of one head at one position, without a correction."""
    return 2 * chunk * (key + value) + 4 * key * value

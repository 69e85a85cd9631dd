"""Attention: `y[t] = Σ softmax(q[t] · k[s]) v[s]` over the keys s that query t sees."""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .reference import reference_attention, Rules
from .xla import xla_attention


Backend = Literal["reference", "xla"]

_BACKENDS = {"reference": reference_attention, "xla": xla_attention}


def attention(
    q: Float[Array, "time heads head"],
    k: Float[Array, "keys kv_heads head"],
    v: Float[Array, "keys kv_heads value"],
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array, " keys"] | None = None,
    mask: Bool[Array, " keys"] | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    backend: Backend | None = None,
) -> Float[Array, "time heads value"]:
    """Softmax attention of one sequence, with grouped queries: head h reads kv head `h // group`.

    The queries stand at the last `time` of the `keys` positions: those before them may be a cache.
    A query that sees no key gets zeros. The softmax runs in at least float32.

    - `causal`: a query sees no later key.
    - `window`: a query sees the keys less than `window` positions away: causal, `window` keys, its
        own among them.
    - `segment_ids`: the document of every position; a query sees its own document.
    - `mask`: False where a key is hidden, whatever it and its value hold.
    - `soft_cap`: bound the scores smoothly, `soft_cap · tanh(score / soft_cap)`.
    - `scale`: the factor of `q · k`, by default `1 / √head`.
    - `backend`: how to compute it. `"reference"` is the definition and the one that supports
        forward-mode differentiation; it stores `heads · time · keys` scores. `"xla"`, the default,
        stores scores of one pair of blocks alone: its memory is linear in time, and with a window
        its cost is too.
    """
    _check(q, k, v, causal or window is not None or segment_ids is not None)
    if len(q) == 0 or len(k) == 0:
        return jnp.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    if mask is not None:
        k, v = (jnp.where(mask[:, None, None], x, jnp.zeros_like(x)) for x in (k, v))
    dtype = jnp.result_type(q, k, v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rules = Rules(causal, window, len(k) - len(q), scale, soft_cap)
    attend = _BACKENDS[backend or "xla"]
    y = attend(q.astype(dtype), k.astype(dtype), v.astype(dtype), segment_ids, mask, rules)
    return y.astype(q.dtype)


def _check(q: Array, k: Array, v: Array, aligned: bool) -> None:
    if q.shape[1] % max(k.shape[1], 1) or k.shape[1] != v.shape[1]:
        raise ValueError(
            "`attention` needs as many kv heads in `k` as in `v`, and a number that divides the "
            f"query heads. Received {q.shape[1]} query heads, {k.shape[1]} kv heads in `k`, and "
            f"{v.shape[1]} in `v`."
        )
    if aligned and len(q) > len(k):
        raise ValueError(
            "`attention` takes the queries as the last of the keys' positions, so there cannot be "
            f"more of them. Received {len(q)} queries and {len(k)} keys. There may be fewer keys "
            "only with `causal=False`, no `window` and no `segment_ids`."
        )

"""Attention: `y[t] = Σ softmax(q[t] · k[s]) v[s]` over the keys s that query t sees."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .case import Case, Rules
from .choice import Backend, Choice, choose, kernel_attention
from .reference import reference_attention


def attention(
    q: Float[Array, "time heads head"],
    k: Float[Array, "keys kv_heads head"],
    v: Float[Array, "keys kv_heads value"],
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array, " keys"] | None = None,
    mask: Bool[Array, " keys"] | None = None,
    padding_last: bool = False,
    spans: Int[Array, " keys"] | None = None,
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
    - `spans`: positions of one number of 0 or more see each other, later ones and those beyond the
        window too; those of a negative one belong to no span.
    - `padding_last`: promises that in `mask` no key is behind a hidden one, which cuDNN needs.
    - `soft_cap`: bound the scores smoothly, `soft_cap · tanh(score / soft_cap)`.
    - `scale`: the factor of `q · k`, by default `1 / √head`.
    - `backend`: how to compute it; by default what suits the case and the platform that the
        program is lowered for, which `explain_backend` tells. `"reference"` is the definition and
        the one that supports forward-mode differentiation; it stores `heads · time · keys` scores.
        The memory of the others is linear in time, and with a window their cost is too. `"xla"`
        takes every case; `"cudnn"`, on a GPU, and `"pallas_tpu"`, splash attention on a TPU, raise
        a ValueError for a case that they cannot take.
    """
    case = _case(q, k, v, causal, window, segment_ids, mask, padding_last, spans, soft_cap, scale)
    if len(q) == 0 or len(k) == 0:
        return jnp.zeros((*q.shape[:2], v.shape[-1]), q.dtype)
    if mask is not None:
        k, v = (jnp.where(mask[:, None, None], x, jnp.zeros_like(x)) for x in (k, v))
    dtype, output_dtype = case.q.dtype, q.dtype
    q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
    if backend == "reference":
        y = reference_attention(q, k, v, segment_ids, mask, spans, case.rules)
    else:
        y = kernel_attention(q, k, v, segment_ids, mask, spans, case, backend)
    return y.astype(output_dtype)


def explain_backend(
    platform: str,
    q: Float[Array, "time heads head"] | jax.ShapeDtypeStruct,
    k: Float[Array, "keys kv_heads head"] | jax.ShapeDtypeStruct,
    v: Float[Array, "keys kv_heads value"] | jax.ShapeDtypeStruct,
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array, " keys"] | jax.ShapeDtypeStruct | None = None,
    mask: Bool[Array, " keys"] | jax.ShapeDtypeStruct | None = None,
    padding_last: bool = False,
    spans: Int[Array, " keys"] | jax.ShapeDtypeStruct | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Choice:
    """The backend that `attention` chooses for these arguments, and why.

    - `platform`: what the program would be lowered for: `"cpu"`, `"cuda"`, `"tpu"` or another.
    """
    case = _case(q, k, v, causal, window, segment_ids, mask, padding_last, spans, soft_cap, scale)
    return choose(case, platform)


def _case(
    q, k, v, causal, window, segment_ids, mask, padding_last, spans, soft_cap, scale
) -> Case:
    _check(q, k, v, causal or not (window is None and segment_ids is None and spans is None))
    dtype = jnp.result_type(q, k, v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    offset = k.shape[0] - q.shape[0]
    q, k, v = (jax.ShapeDtypeStruct(x.shape, dtype) for x in (q, k, v))
    ids = None if segment_ids is None else segment_ids.dtype
    rules = Rules(causal, window, offset, scale, soft_cap, spans is not None)
    return Case(q, k, v, ids, mask is not None, padding_last, rules)


def _check(q, k, v, aligned: bool) -> None:
    if q.shape[1] % max(k.shape[1], 1) or k.shape[1] != v.shape[1]:
        raise ValueError(
            "`attention` needs as many kv heads in `k` as in `v`, and a number that divides the "
            f"query heads. Received {q.shape[1]} query heads, {k.shape[1]} kv heads in `k`, and "
            f"{v.shape[1]} in `v`."
        )
    if aligned and q.shape[0] > k.shape[0]:
        raise ValueError(
            "`attention` takes the queries as the last of the keys' positions, so there cannot be "
            f"more of them. Received {q.shape[0]} queries and {k.shape[0]} keys. There may be fewer "
            "keys only with `causal=False`, no `window`, `segment_ids` or `spans`."
        )

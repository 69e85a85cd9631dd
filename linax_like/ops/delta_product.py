"""Several corrections of the delta rule at one position, after one decay and before one answer:

    S ← exp(log_decay[t]) S,   then for every i   S ← S + beta[t, i] k[t, i] (v[t, i] - Sᵀ k[t, i])ᵀ
    y[t] = Sᵀ q[t]

(https://arxiv.org/abs/2502.10297). It is the delta rule on a sequence that is as many times longer.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from .delta_rule import delta_rule, delta_rule_step


def delta_product(
    q: Float[Array, "time groups key"],
    k: Float[Array, "time updates groups key"],
    v: Float[Array, "time updates heads value"],
    beta: Float[Array, "time updates heads"],
    log_decay: Float[Array, "time heads *key"] | None = None,
    s0: Float[Array, "heads key value"] | None = None,
    *,
    resets: Bool[Array, " time"] | None = None,
    mask: Bool[Array, " time"] | None = None,
    axis_name: str | None = None,
    chunk: int = 64,
) -> tuple[Float[Array, "heads key value"], Float[Array, "time heads value"]]:
    """The state after all positions, in at least float32, and the outputs in the dtype of `v`.

    Arguments are as for `delta_rule`, which says more of them.
    """
    time, updates = beta.shape[:2]
    first, last = (0, updates - 1), (updates - 1, 0)
    state, y = delta_rule(
        _among(q, last),
        _in_a_row(k),
        _in_a_row(v),
        _in_a_row(beta),
        None if log_decay is None else _among(log_decay, first),
        s0,
        resets=None if resets is None else _among(resets, first),
        mask=None if mask is None else jnp.repeat(mask, updates),
        axis_name=axis_name,
        chunk=chunk * updates,
    )
    return state, y.reshape(time, updates, *y.shape[1:])[:, -1]


def delta_product_step(
    state: Float[Array, "heads key value"],
    q: Float[Array, "groups key"],
    k: Float[Array, "updates groups key"],
    v: Float[Array, "updates heads value"],
    beta: Float[Array, "updates heads"],
    log_decay: Float[Array, " heads *key"] | None = None,
) -> tuple[Float[Array, "heads key value"], Float[Array, "heads value"]]:
    """One position. The caller forgets the state at a new document, and keeps it at padding."""
    state, y = delta_rule_step(state, q, k[0], v[0], beta[0], log_decay)
    for update in zip(k[1:], v[1:], beta[1:], strict=True):
        state, y = delta_rule_step(state, q, *update)
    return state, y


def _in_a_row(x: Shaped[Array, " time updates *shape"]) -> Shaped[Array, " longer *shape"]:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _among(
    x: Shaped[Array, " time *shape"], others: tuple[int, int]
) -> Shaped[Array, " longer *shape"]:
    """Every position, with zeros for so many updates before and after it."""
    return _in_a_row(jnp.pad(x[:, None], ((0, 0), others, *((0, 0) for _ in x.shape[1:]))))

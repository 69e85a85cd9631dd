"""Which experts a position goes through, how many find room, and what keeps them equally busy.

    s = softmax(logits) or σ(logits)        C = the k experts of largest s + b
    w_e = s_e / Σ_{i ∈ C} s_i               for e ∈ C

A bias b has a part in the choice alone (https://arxiv.org/abs/2412.19437). It moves by the sign of how
busy an expert is, beside the gradient of any loss (https://arxiv.org/abs/2408.15664):

    b_e ← b_e - rate · sign(n_e - mean(n))        n_e = choices of expert e in the batch

Where the numbers n come from: a term Σ b_e n_e of value zero in the auxiliary loss, whose derivative by
b they are. So those of every layer arrive where gradients do, out of scans and from all devices.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..initializers import constant
from ..parameters import Buffer
from ..types import Scalar


Router = Literal["softmax", "sigmoid"]


class RouterBias(eqx.Module):
    """What is added to the scores of experts where they are chosen.

    - `rate`: how far it moves per step.
    """

    rate: float = eqx.field(static=True)
    offset: Buffer  # b, (experts,)

    def __init__(self, experts: int, rate: float):
        self.rate = rate
        self.offset = Buffer(constant(0.0, (experts,)))

    def listen(self, load: Float[Array, " experts"]) -> Scalar:
        """Zero, whose derivative by the bias is the load."""
        b = self.offset.array
        return jnp.sum((b - jax.lax.stop_gradient(b)) * load.astype(b.dtype)).astype(load.dtype)

    def moved(self, load: Float[Array, "*repeats experts"]) -> "RouterBias":
        """The bias after a step in which the experts were so busy."""
        excess = load - jnp.mean(load, axis=-1, keepdims=True)
        b = self.offset.array - self.rate * jnp.sign(excess)
        return eqx.tree_at(lambda bias: bias.offset.array, self, b)


def router_biases(model: PyTree) -> PyTree[bool]:
    """True at every array of a `RouterBias`."""

    def mark(node: PyTree) -> PyTree[bool]:
        return jax.tree.map(lambda _: _is_bias(node), node)

    return jax.tree.map(mark, model, is_leaf=_is_bias)


def balance(biases: PyTree, loads: PyTree) -> PyTree:
    """A model's biases moved by their loads, which are the gradients by them."""
    move = lambda bias, load: bias.moved(load.offset.array)
    return jax.tree.map(move, biases, loads, is_leaf=_is_bias)


def log_scores(
    router: Router, logits: Float[Array, "rows experts"]
) -> Float[Array, "rows experts"]:
    """Logarithms, so that their ratios are right where they themselves are not above zero."""
    return jax.nn.log_softmax(logits) if router == "softmax" else jax.nn.log_sigmoid(logits)


def choose(
    scores: Float[Array, "rows experts"], bias: RouterBias | None, top_k: int, normalize: bool
) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
    """The weights of each row's experts, and which they are, the best first.

    - `scores`: their logarithms.
    """
    if bias is None:
        log_weights, experts = jax.lax.top_k(scores, top_k)
    else:
        _, experts = jax.lax.top_k(jnp.exp(scores) + bias.offset.value, top_k)
        log_weights = jnp.take_along_axis(scores, experts, axis=-1)
    return jax.nn.softmax(log_weights) if normalize else jnp.exp(log_weights), experts


def find_room(
    experts: Int[Array, "rows k"], real: Bool[Array, " rows"], num_experts: int, factor: float
) -> Bool[Array, "rows k"]:
    """Whether a chosen expert has room: it takes the first best choices, the first second ones …

    - `experts`: -1 for none.
    - `factor`: how many each takes, in even shares of all choices.
    """
    share = factor * experts.shape[1] / num_experts
    # A share that is whole stays so where its product is rounded up.
    room = jnp.maximum(jnp.ceil(jnp.sum(real) * (share * (1 - 1e-6))), 1)
    chosen = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32)
    place = jnp.sum(jnp.cumsum(chosen, axis=0) * chosen, axis=-1)
    return (place > 0) & (place <= room)


def _is_bias(node: PyTree) -> bool:
    return isinstance(node, RouterBias)

"""Mixture of experts: a router sends every position to a few of many small feed-forward layers.

    w, C = the k experts of largest score, and their weights        (`routing.py`)
    y = Σ_{e ∈ C} w_e E_e(x)  +  σ(r · x) S(x)
    E_e(x) = D_e (silu(G_e x) ⊙ U_e x)      S, which sees every position, likewise

    balance  = experts · Σ_e f_e mean(s_e)       f_e = expert e's part of all choices, s_e its score
    z        = mean(logsumexp(R x)²)             R x = the router's logits

from https://arxiv.org/abs/1701.06538 and https://arxiv.org/abs/2101.03961; the loss z from
https://arxiv.org/abs/2202.08906, the gate r of the shared expert S from Qwen.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..config import require, require_choice, require_positive
from ..initializers import linear_weight, normal, split
from ..ops.grouped_matmul import grouped_matmul
from ..precision import linear, upcast
from ..types import Aux, Scalar
from .base import AbstractChannelMixerConfig, AbstractRoutedChannelMixer, require_width
from .routing import choose, find_room, log_scores, Router, RouterBias


@dataclass(frozen=True)
class MixtureOfExpertsConfig(AbstractChannelMixerConfig):
    """Many SwiGLU layers, a few of which every position goes through.

    - `num_experts`, `top_k`: how many there are, and how many of them a position goes through.
    - `expert_features`: width of the hidden layer of one; by default such that `top_k` of them do as
        much as one `SwiGLUConfig()`.
    - `shared_features`: that of an expert which every position goes through beside; None for none.
        Several shared experts are one as wide as all of them.
    - `shared_gate`: the shared expert has a gate, as in Qwen; in DeepSeek it has none.
    - `router`: what makes scores of logits. `"softmax"` weighs the experts against each other,
        `"sigmoid"` each by itself.
    - `normalize`: the weights of the chosen experts sum to one; else they are the scores.
    - `capacity`: how many positions an expert has room for as its first choice, its second choice
        …, in even shares of them, rounded up; the first ones are taken, and the others do without.
        None for as many as come. An even share depends on how many positions there are in all:
        sequences of other lengths, and single steps, may get other results.
    - `balance_loss`, `z_loss`: weights of the auxiliary losses, which keep the experts equally busy
        and the router's logits small. Common: 0.01 and 0.001.
    - `bias_rate`: keeps them equally busy without a loss: how far a bias in the choice moves per
        training step. None for no bias. Common, with sigmoid scores: 0.001.
    """

    num_experts: int = 8
    top_k: int = 2
    expert_features: int | None = None
    shared_features: int | None = None
    shared_gate: bool = True
    router: Router = "softmax"
    normalize: bool = True
    capacity: float | None = None
    balance_loss: float = 0.0
    z_loss: float = 0.0
    bias_rate: float | None = None

    def __post_init__(self):
        require_positive(self, "num_experts")
        law = f"from 1 to num_experts={self.num_experts}"
        require(1 <= self.top_k <= self.num_experts, self, "top_k", law)
        require_choice(self, "router")
        for field in ("expert_features", "shared_features", "capacity", "bias_rate"):
            size = getattr(self, field)
            require(size is None or size > 0, self, field, "positive or None")
        for field in ("balance_loss", "z_loss"):
            require(getattr(self, field) >= 0, self, field, "at least 0")

    def build(self, in_features: int, key: PRNGKeyArray) -> "MixtureOfExperts":
        return MixtureOfExperts(in_features, self, key)


class SharedExpert(eqx.Module):
    """The expert that every position goes through, and perhaps its gate."""

    gate_proj: Float[Array, "hidden features"]  # G
    up_proj: Float[Array, "hidden features"]  # U
    down_proj: Float[Array, "features hidden"]  # D
    output_gate: Float[Array, "1 features"] | None  # r

    def __init__(self, in_features: int, hidden: int, gate: bool, key: PRNGKeyArray):
        gate_key, up_key, down_key, output_key = split(key, 4)
        self.gate_proj = linear_weight(gate_key, in_features, hidden)
        self.up_proj = linear_weight(up_key, in_features, hidden)
        self.down_proj = normal(down_key, (in_features, hidden), _down_std(hidden))
        self.output_gate = linear_weight(output_key, in_features, 1) if gate else None

    def __call__(self, x: Float[Array, "rows features"]) -> Float[Array, "rows features"]:
        h = jax.nn.silu(linear(x, self.gate_proj)) * linear(x, self.up_proj)
        y = linear(h, self.down_proj)
        gate = self.output_gate
        return y if gate is None else jax.nn.sigmoid(linear(x, gate)) * y


class MixtureOfExperts(AbstractRoutedChannelMixer):
    """Router, experts, and perhaps a shared one. Nothing is random: the key is not used."""

    config: MixtureOfExpertsConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    router: Float[Array, "experts features"]  # R
    gate_proj: Float[Array, "experts hidden features"]  # G
    up_proj: Float[Array, "experts hidden features"]  # U
    down_proj: Float[Array, "experts features hidden"]  # D
    shared: SharedExpert | None  # S
    router_bias: RouterBias | None

    def __init__(self, in_features: int, cfg: MixtureOfExpertsConfig, key: PRNGKeyArray):
        router_key, gate_key, up_key, down_key, shared_key = split(key, 5)
        experts, hidden = cfg.num_experts, cfg.expert_features
        if hidden is None:
            hidden = 8 * max(1, round(in_features / (3 * cfg.top_k)))
        wide, std = (experts, hidden, in_features), 1 / math.sqrt(in_features)
        self.config = cfg
        self.in_features = in_features
        self.router = linear_weight(router_key, in_features, experts)
        self.gate_proj = normal(gate_key, wide, std)
        self.up_proj = normal(up_key, wide, std)
        self.down_proj = normal(down_key, (experts, in_features, hidden), _down_std(hidden))
        shared, gate, rate = cfg.shared_features, cfg.shared_gate, cfg.bias_rate
        self.shared = (
            None if shared is None else SharedExpert(in_features, shared, gate, shared_key)
        )
        self.router_bias = None if rate is None else RouterBias(experts, rate)

    def __call__(
        self,
        x: Float[Array, "*shape features"],
        key: PRNGKeyArray | None = None,
        *,
        mask: Bool[Array, "*shape"] | None = None,
    ) -> tuple[Float[Array, "*shape features"], Aux]:
        require_width(self, x)
        rows = x.reshape(-1, self.in_features)
        real = jnp.ones(len(rows), bool) if mask is None else mask.reshape(-1)
        rows = jnp.where(real[:, None], rows, 0)
        cfg, logits = self.config, linear(upcast(rows), self.router)
        scores = log_scores(cfg.router, logits)
        weights, experts = choose(scores, self.router_bias, cfg.top_k, cfg.normalize)
        experts = jnp.where(real[:, None], experts, -1)  # of none
        taken = experts
        if cfg.capacity is not None:
            room = find_room(experts, real, cfg.num_experts, cfg.capacity)
            taken = jnp.where(room, experts, -1)
        y = self._mix(rows, weights, taken)
        if self.shared is not None:
            y = y + self.shared(rows)
        dropped = jnp.sum(taken != experts).astype(logits.dtype)
        return y.reshape(x.shape), self._aux(logits, scores, experts, real, dropped)

    @property
    def complexity(self) -> str:
        return "O(L · d²)"

    def flop_count(self, positions: int, inference: bool = False) -> int:
        _, hidden, features = self.gate_proj.shape
        each = self.router.size + self.config.top_k * 3 * hidden * features
        if self.shared is not None:
            each += sum(weight.size for weight in jax.tree.leaves(self.shared))
        forward = 2 * positions * each
        return forward if inference else 3 * forward

    def _mix(
        self,
        rows: Float[Array, "rows features"],
        weights: Float[Array, "rows k"],
        experts: Int[Array, "rows k"],
    ) -> Float[Array, "rows features"]:
        """The sum of what the experts of each row, if they are any, make of it."""
        each, of = jnp.repeat(rows, self.config.top_k, axis=0), experts.reshape(-1)
        gate = grouped_matmul(each, self.gate_proj, of)
        h = jax.nn.silu(gate) * grouped_matmul(each, self.up_proj, of)
        y = grouped_matmul(h, self.down_proj, of).reshape(*experts.shape, self.in_features)
        return jnp.sum(weights[..., None] * y, axis=1).astype(rows.dtype)

    def _aux(
        self,
        logits: Float[Array, "rows experts"],
        scores: Float[Array, "rows experts"],
        experts: Int[Array, "rows k"],
        real: Bool[Array, " rows"],
        dropped: Scalar,
    ) -> Aux:
        """The weighted losses, which are means over the real rows, and how busy the experts are."""
        cfg = self.config
        load = jax.nn.one_hot(experts, cfg.num_experts, dtype=logits.dtype).sum(axis=(0, 1))
        routed = jnp.sum(load)
        part = load / jnp.maximum(routed, 1)
        balance = cfg.num_experts * jnp.sum(part * _mean(jnp.exp(scores), real))
        z = _mean(jax.nn.logsumexp(logits, axis=-1) ** 2, real)
        loss = cfg.balance_loss * balance + cfg.z_loss * z
        if self.router_bias is not None:
            loss = loss + self.router_bias.listen(load)
        return Aux(loss, routed, dropped, cfg.num_experts * jnp.max(load))


def _down_std(hidden: int) -> float:
    """Keeps the variance; E[silu(z)²] = 0.3556 for z of unit variance."""
    return 1 / math.sqrt(0.3556 * hidden)


def _mean(each: Float[Array, "rows ..."], real: Bool[Array, " rows"]) -> Float[Array, "..."]:
    """The mean over real rows, and zero if there are none."""
    total = jnp.sum(each, axis=0, where=real.reshape(-1, *[1] * (each.ndim - 1)))
    return total / jnp.maximum(jnp.sum(real), 1)

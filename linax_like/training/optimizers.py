"""Optimisers: which parameter gets which update, at which learning rate.

    group        what                                               update
    matrix       the stack's weights of two or more axes            AdamW or Muon, weight decay
    vector       the stack's norms, biases, gains                   Adam
    recurrence   eigenvalues, step sizes, gains of a recurrence     Adam
    edge         what is outside the stack: embedding, head …       Adam

AdamW: https://arxiv.org/abs/1711.05101. Muon: https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from ..config import AbstractConfig, require, require_choice, require_positive
from ..freezing import trainable
from ..sequence_mixers import AbstractQKVOperator, AbstractSequenceMixer
from ..stack import Stack
from .muon import scale_by_muon


@dataclass(frozen=True)
class OptimizerConfig(AbstractConfig):
    """One schedule, and a peak learning rate for every group of parameters.

    - `learning_rate`: the peak rate of all groups that have none of their own.
    - `matrices`: how the stack's weights are updated. Muon takes fewer steps to a good language
        model, at some cost per step.
    - `matrix_learning_rate`, `edge_learning_rate`, `recurrence_learning_rate`: a group's own peak
        rate. State space models often need a smaller one for their recurrence.
    - `weight_decay`: of the stack's weights of two or more axes, and of nothing else.
    - `warmup`: fraction of all steps in which the rate rises to its peak.
    - `decay`, `final_fraction`: how the rate falls after that, and to which fraction of its peak.
    - `clip_norm`: the largest norm of the whole gradient; None for no limit.
    - `beta1`, `beta2`: Adam's means over time. `momentum`: Muon's.
    - `average`: decay per step of a running mean of the weights, which is then what is evaluated
        and generates; None for no mean.
    """

    learning_rate: float = 3e-3
    matrices: Literal["adamw", "muon"] = "adamw"
    matrix_learning_rate: float | None = None
    edge_learning_rate: float | None = None
    recurrence_learning_rate: float | None = None
    weight_decay: float = 0.1
    warmup: float = 0.05
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.0
    clip_norm: float | None = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    average: float | None = None

    def __post_init__(self):
        require_positive(self, "learning_rate")
        require_choice(self, "matrices", "decay")
        require(self.weight_decay >= 0, self, "weight_decay", "at least 0")
        for field in ("matrix", "edge", "recurrence"):
            self._require_positive_or_none(f"{field}_learning_rate")
        self._require_positive_or_none("clip_norm")
        for field in ("warmup", "final_fraction"):
            require(0 <= getattr(self, field) <= 1, self, field, "in [0, 1]")
        for field in ("beta1", "beta2", "momentum"):
            require(0 <= getattr(self, field) < 1, self, field, "in [0, 1)")
        require(self.average is None or 0 < self.average < 1, self, "average", "in (0, 1) or None")

    def build(
        self, model: PyTree, steps: int, frozen: Sequence[str] = ()
    ) -> optax.GradientTransformation:
        """The update rule for the trained arrays of a model, over so many steps.

        - `frozen`: patterns of the names of arrays that are not trained.
        """
        return _build(self, eqx.filter(model, trainable(model, frozen)), steps)

    def _require_positive_or_none(self, field: str) -> None:
        value = getattr(self, field)
        require(value is None or value > 0, self, field, "positive or None")


def learning_rate_schedule(cfg: OptimizerConfig, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then the decay."""
    warmup = round(cfg.warmup * steps)
    rest = max(steps - warmup, 1)
    match cfg.decay:
        case "cosine":
            decay = optax.cosine_decay_schedule(peak, rest, cfg.final_fraction)
        case "linear":
            decay = optax.linear_schedule(peak, peak * cfg.final_fraction, rest)
        case "constant":
            decay = optax.constant_schedule(peak)
    # The very first step already has a rate above zero.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    return optax.join_schedules([rise, decay], [warmup])


def parameter_groups(parameters: PyTree) -> PyTree[str]:
    """The group of every trained array: `"matrix"`, `"edge"`, `"vector"` or `"recurrence"`."""

    def mark(node: PyTree) -> PyTree[str]:
        if not isinstance(node, Stack):
            return "edge"
        labels = _label(node, axes=2)
        # Within `groups` arrays have one more axis, the repeats of their pattern.
        return eqx.tree_at(lambda stack: stack.groups, labels, _label(node.groups, axes=3))

    return jax.tree.map(mark, parameters, is_leaf=lambda node: isinstance(node, Stack))


def _label(tree: PyTree, axes: int) -> PyTree[str]:
    """The groups of arrays of a stack, where a matrix has at least `axes` axes."""
    recurrence = frozenset()
    if isinstance(tree, AbstractSequenceMixer | AbstractQKVOperator):
        recurrence = tree.recurrence_parameters

    def is_inner_mixer(node: PyTree) -> bool:
        is_mixer = isinstance(node, AbstractSequenceMixer | AbstractQKVOperator)
        return is_mixer and node is not tree

    def mark(path, node: PyTree) -> PyTree[str]:
        if is_inner_mixer(node):
            return _label(node, axes)
        if recurrence and path[0].name in recurrence:
            return "recurrence"
        return "matrix" if node.ndim >= axes else "vector"

    return jax.tree_util.tree_map_with_path(mark, tree, is_leaf=is_inner_mixer)


def _build(cfg: OptimizerConfig, parameters: PyTree, steps: int) -> optax.GradientTransformation:
    groups = parameter_groups(parameters)
    adam = optax.scale_by_adam(cfg.beta1, cfg.beta2)
    matrices = scale_by_muon(cfg.momentum) if cfg.matrices == "muon" else adam
    directions: dict[Hashable, optax.GradientTransformation] = {
        "matrix": matrices,
        "edge": adam,
        "vector": adam,
        "recurrence": adam,
    }
    peaks = {
        "matrix": cfg.matrix_learning_rate,
        "edge": cfg.edge_learning_rate,
        "vector": None,
        "recurrence": cfg.recurrence_learning_rate,
    }
    rates: dict[Hashable, optax.GradientTransformation] = {
        group: optax.scale_by_learning_rate(
            learning_rate_schedule(cfg, cfg.learning_rate if peak is None else peak, steps)
        )
        for group, peak in peaks.items()
    }
    decayed = jax.tree.map(lambda group: group == "matrix", groups)
    return optax.chain(
        optax.identity() if cfg.clip_norm is None else optax.clip_by_global_norm(cfg.clip_norm),
        # Functions, since optax would call a tree of labels that happens to be a model.
        optax.multi_transform(directions, lambda _: groups),
        optax.add_decayed_weights(cfg.weight_decay, lambda _: decayed),
        optax.multi_transform(rates, lambda _: groups),
    )

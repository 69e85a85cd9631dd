"""The training step: what each parameter gets, and that no way of cutting a batch matters."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import Array

import linax_like as lx
from linax_like.ops.cross_entropy import cross_entropy
from linax_like.tasks import Metrics
from linax_like.tasks.base import classify
from linax_like.training import (
    init_state,
    learning_rate_schedule,
    make_train_step,
    OptimizerConfig,
    parameter_groups,
    scale_by_muon,
)
from linax_like.training.muon import newton_schulz
from linax_like.types import Aux, no_aux


TIME, VOCABULARY, BATCH = 12, 20, 8


# A recurrence takes seconds to compile; what is about cutting batches does without one.
def language_model(mixer=None, *, dropout=0.0, dtype: Any = "float32") -> lx.LanguageModelConfig:
    mixer = lx.IdentitySequenceMixerConfig() if mixer is None else mixer
    block = lx.ResidualBlockConfig(mixer, lx.GLUConfig(), dropout=dropout, layer_scale=1.0)
    stack = lx.StackConfig((((block,), 2),))
    return lx.LanguageModelConfig(VOCABULARY, 8, stack, dtype=dtype)


def token_loss(model, batch, keys) -> Metrics:
    logits, aux = jax.vmap(model)(batch["inputs"], keys)
    return classify(logits, batch["targets"], aux)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (BATCH, TIME + 1))
    return {"inputs": jnp.asarray(tokens[:, :-1]), "targets": jnp.asarray(tokens[:, 1:])}


@pytest.fixture(scope="module")
def model(key):
    return language_model().build(key)


@pytest.fixture(scope="module")
def recurrent_model(key):
    return language_model(lx.LRUSequenceMixerConfig(4)).build(key)


def train(model, batch, cfg, *, count):
    """The state after a few steps, and their losses."""
    optimizer = cfg.build(model, 10)
    step = jax.jit(make_train_step(token_loss, optimizer, seed=0))
    state, losses = init_state(model, optimizer), []
    for _ in range(count):
        state, report = step(state, batch)
        losses.append(float(report.metrics.loss / report.metrics.items))
    return state, losses


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_training_lowers_the_loss(model, batch, matrices):
    cfg = OptimizerConfig(learning_rate=0.02, matrices=matrices)
    _, losses = train(model, batch, cfg, count=10)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_whole_batch(batch, parts, key):
    """Dropout included: an example's key depends on its place in the batch alone."""
    model = language_model(dropout=0.3).build(key)
    optimizer = optax.sgd(0.1)
    state = init_state(model, optimizer)
    whole, report = jax.jit(make_train_step(token_loss, optimizer, seed=0))(state, batch)
    step = jax.jit(make_train_step(token_loss, optimizer, seed=0, accumulation=parts))
    in_parts, report_in_parts = step(state, batch)
    close(whole.model, in_parts.model, rtol=1e-5, atol=1e-6)
    close(report, report_in_parts, rtol=1e-5)


def test_accumulation_weighs_items_not_parts(model, batch):
    """With padding, parts have different numbers of items; the mean is over all of them."""
    real = jnp.arange(TIME) < jnp.asarray([TIME, 3] * (BATCH // 2))[:, None]

    def masked(model, batch, keys):
        tokens, targets, real = batch
        logits, _ = jax.vmap(model)(tokens, keys)
        losses = jnp.where(real, cross_entropy(logits, targets), 0.0)
        return Metrics(
            losses.sum(), losses.sum(), jnp.zeros(()), real.sum().astype(jnp.float32), no_aux()
        )

    padded = batch["inputs"], batch["targets"], real
    optimizer = optax.sgd(0.1)
    state = init_state(model, optimizer)
    whole, _ = jax.jit(make_train_step(masked, optimizer, seed=0))(state, padded)
    step = jax.jit(make_train_step(masked, optimizer, seed=0, accumulation=2))
    parts, _ = step(state, padded)
    close(whole.model, parts.model, rtol=1e-5, atol=1e-6)
    mean = lambda model: masked(model, padded, None).loss / real.sum()
    gradient = jax.jit(jax.grad(mean))(model)
    close(
        whole.model, jax.tree.map(lambda p, g: p - 0.1 * g, model, gradient), rtol=1e-4, atol=1e-6
    )


def test_parameter_groups(recurrent_model):
    groups = parameter_groups(recurrent_model)
    (block,) = groups.stack.groups[0]
    assert groups.embedding.table == "edge"
    assert block.sequence_mixer.log_decay == "recurrence"
    assert block.sequence_mixer.log_gain == "recurrence"
    assert block.sequence_mixer.in_proj == "matrix"
    assert block.sequence_mixer.skip == "vector"  # (repeats, features) is no matrix
    assert block.sequence_norm.weight == block.sequence_scale == "vector"
    assert groups.stack.final_norm.weight == "vector"


@pytest.mark.parametrize(
    "cfg",
    [lx.LRUSequenceMixerConfig(4), lx.S4DSequenceMixerConfig(4), lx.S5SequenceMixerConfig(4)],
    ids=["lru", "s4d", "s5"],
)
def test_recurrent_mixers_name_their_recurrence_parameters(cfg, key):
    mixer = eqx.filter_eval_shape(cfg.build, 8, key)
    assert mixer.recurrence_parameters
    assert all(getattr(mixer, name).ndim <= 2 for name in mixer.recurrence_parameters)


def zero_gradient_step(model, cfg):
    """The weights after a step whose gradient is zero: only decay is left."""

    def no_loss(model, batch, keys):
        total = jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(model))))
        return Metrics(0.0 * total, total, total, jnp.ones(()), no_aux())

    optimizer = cfg.build(model, 10)
    step = jax.jit(make_train_step(no_loss, optimizer, seed=0))
    return step(init_state(model, optimizer), {"x": jnp.zeros(2)})[0].model


@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_weight_decay_acts_on_matrices_alone(recurrent_model, matrices):
    model = recurrent_model
    cfg = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup=0.0, matrices=matrices)
    after = zero_gradient_step(model, cfg)
    groups = jax.tree.leaves(parameter_groups(model))
    assert set(groups) == {"matrix", "edge", "vector", "recurrence"}
    for group, old, new in zip(groups, *map(jax.tree.leaves, (model, after)), strict=True):
        kept = 1 - 0.1 * 0.5 if group == "matrix" else 1.0
        np.testing.assert_allclose(new, kept * old, rtol=1e-6)


def test_groups_have_their_own_rates(recurrent_model, batch):
    model = recurrent_model
    rates = {"matrix": 1e-2, "edge": 2e-2, "vector": 4e-3, "recurrence": 1e-3}
    cfg = OptimizerConfig(
        learning_rate=rates["vector"],
        matrix_learning_rate=rates["matrix"],
        edge_learning_rate=rates["edge"],
        recurrence_learning_rate=rates["recurrence"],
        weight_decay=0.0,
        warmup=0.0,
    )
    after = train(model, batch, cfg, count=1)[0].model
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), after, model)
    groups = jax.tree.leaves(parameter_groups(model))
    for group, size in zip(groups, jax.tree.leaves(moved), strict=True):
        assert size == pytest.approx(rates[group], rel=0.01)  # Adam's first step is the rate


def test_clipping_bounds_the_gradient(model, batch):
    """With plain sums as updates, the step's size is the clipped norm."""
    cfg = OptimizerConfig(clip_norm=0.01)
    clip = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    step = jax.jit(make_train_step(token_loss, clip, seed=0))
    state, report = step(init_state(model, clip), batch)
    difference = jax.tree.map(jnp.subtract, state.model, model)
    assert float(report.gradient_norm) > 0.1
    assert float(optax.tree.norm(difference)) == pytest.approx(0.01, rel=1e-3)
    # Adam does not see the scale of a gradient, but its second moment does.
    moments = {}
    for limit in (0.01, None):
        state, _ = train(model, batch, OptimizerConfig(clip_norm=limit), count=1)
        found = optax.tree_utils.tree_get_all_with_path(state.optimizer, "nu")
        moments[limit] = sum(float(jnp.sum(x)) for x in jax.tree.leaves([nu for _, nu in found]))
    beta2 = cfg.beta2
    assert moments[0.01] == pytest.approx((1 - beta2) * 0.01**2, rel=1e-2)
    assert moments[None] > 10 * moments[0.01]


def test_schedule():
    cfg = OptimizerConfig(warmup=0.1, decay="linear", final_fraction=0.2)
    schedule: Any = learning_rate_schedule(cfg, 2.0, 100)
    rates = [float(schedule(step)) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.2) and rates[100] == pytest.approx(0.4)
    cosine: Any = learning_rate_schedule(OptimizerConfig(warmup=0.0), 2.0, 100)
    assert [float(cosine(step)) for step in (0, 50, 100)] == pytest.approx([2.0, 1.0, 0.0])
    constant: Any = learning_rate_schedule(OptimizerConfig(warmup=0.0, decay="constant"), 2.0, 100)
    assert float(constant(0)) == float(constant(100)) == 2.0


class WithBuffer(eqx.Module):
    """A model with something stored beside what is trained."""

    weight: Array
    buffer: lx.Buffer

    def __call__(self, x):
        return x * self.weight * self.buffer.value


def test_buffers_are_frozen():
    model = WithBuffer(jnp.ones(()), lx.Buffer(jnp.full((), 2.0)))

    def squares(model, batch, keys):
        loss = jnp.sum(jax.vmap(model)(batch) ** 2)
        return Metrics(loss, loss, loss, jnp.asarray(4.0), no_aux())

    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state, _ = make_train_step(squares, optimizer, seed=0)(
        init_state(model, optimizer), jnp.ones(4)
    )
    assert float(state.model.weight) < 1.0
    assert float(state.model.buffer.array) == 2.0


def test_half_precision_compute_keeps_float32_parameters(batch, key):
    model = language_model(dtype="bfloat16").build(key)
    assert jax.vmap(model)(batch["inputs"]).logits.dtype == jnp.float32
    state, losses = train(model, batch, OptimizerConfig(learning_rate=0.02), count=10)
    assert losses[-1] < losses[0] - 0.3
    for leaf in jax.tree.leaves((state.model, state.optimizer)):
        assert leaf.dtype in (jnp.float32, jnp.int32)


def test_average_follows_the_weights(model, batch):
    cfg = OptimizerConfig(learning_rate=0.01, average=0.5, warmup=0.0)
    optimizer = cfg.build(model, 10)
    step = jax.jit(make_train_step(token_loss, optimizer, seed=0, average=0.5))
    state, mean = init_state(model, optimizer, average=True), model
    for count in (1, 2, 3):
        state, _ = step(state, batch)
        decay = min(0.5, count / (9 + count))
        mean = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * p, mean, state.model)
    close(state.average, mean, rtol=1e-4, atol=1e-6)
    assert state.result is state.average
    assert init_state(model, optimizer).average is None


def test_muon_makes_every_matrix_of_a_batch_orthogonal(key):
    gradient = jr.normal(key, (3, 16, 40))
    values = jnp.linalg.svd(newton_schulz(gradient).astype(jnp.float32), compute_uv=False)
    assert 0.5 < float(values.min()) and float(values.max()) < 1.5
    muon = scale_by_muon()
    matrices = {"tall": gradient.swapaxes(1, 2), "wide": gradient[0]}  # (out, in)
    updates: Any = muon.update(matrices, muon.init(matrices))[0]
    gain = (40 / 16) ** 0.5  # a layer that widens moves further
    np.testing.assert_allclose(updates["tall"][0].T, gain * updates["wide"], atol=0.02)


def test_auxiliary_losses_are_minimised_too():
    logits, labels = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), jnp.int32)
    aux = Aux(jnp.asarray([1.0, 2.0]), *jnp.ones((3, 2)))
    metrics = classify(logits, labels, aux)
    assert float(metrics.items) == 6
    mean_objective = float(metrics.objective / metrics.items)
    assert mean_objective == pytest.approx(np.log(4) + 1.5)  # the examples' mean auxiliary loss
    assert float(metrics.loss / metrics.items) == pytest.approx(np.log(4))


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"warmup": 1.5},
        {"beta2": 1.0},
        {"clip_norm": 0.0},
        {"average": 1.0},
    ],
)
def test_optimizer_configs_are_checked(options):
    (field,) = options
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        OptimizerConfig(**options)

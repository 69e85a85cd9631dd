"""A step gives the same on one device, and however a batch is divided over several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import linax_like as lx
from linax_like.ops.cross_entropy import cross_entropy
from linax_like.parallel import (
    DATA,
    data_mesh,
    jit_step,
    pmap_step,
    replicate,
    replicated,
    shard_batch,
)
from linax_like.tasks import Metrics
from linax_like.training import init_state, make_train_step, OptimizerConfig
from linax_like.types import no_aux


TIME, VOCABULARY, BATCH = 12, 20, 16
OPTIMIZER = OptimizerConfig(learning_rate=0.01, average=0.9)


@pytest.fixture(scope="module")
def model(key):
    mixer = lx.IdentitySequenceMixerConfig()
    block = lx.ResidualBlockConfig(mixer, lx.GLUConfig(), dropout=0.3, layer_scale=1.0)
    return lx.LanguageModelConfig(VOCABULARY, 8, lx.StackConfig((((block,), 2),))).build(key)


@pytest.fixture(scope="module")
def batch():
    """Examples of unequal length, so that devices have unequal numbers of items."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (BATCH, TIME + 1))
    real = np.arange(TIME) < np.repeat([TIME, 7, 3, 1], BATCH // 4)[:, None]
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "real": real}


def masked_loss(model, batch, keys) -> Metrics:
    logits, _ = jax.vmap(model)(batch["inputs"], keys)
    loss = jnp.where(batch["real"], cross_entropy(logits, batch["targets"]), 0.0).sum()
    return Metrics(loss, loss, jnp.zeros(()), batch["real"].sum().astype(jnp.float32), no_aux())


def shard_map_step(mesh, step):
    specs = (PartitionSpec(), PartitionSpec(DATA))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    compiled = jax.jit(mapped, donate_argnums=0)
    return lambda state, batch: compiled(state, shard_batch(mesh, batch))


def trained(model, batch, parallel, devices, accumulation=1):
    """What three steps on so many devices report, and the state that they end in."""
    mesh, optimizer = data_mesh(jax.devices()[-devices:]), OPTIMIZER.build(model, 10)
    step = make_train_step(
        masked_loss,
        optimizer,
        seed=0,
        accumulation=accumulation,
        average=OPTIMIZER.average,
        axis_name=None if parallel is jit_step else DATA,
    )
    step = parallel(mesh, step)
    state = init_state(jax.tree.map(jnp.array, model), optimizer, average=True)
    state, reports = replicate(mesh, state), []
    for _ in range(3):
        before = state
        state, report = step(before, batch)
        reports.append(jax.device_get(report))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.model))  # donated
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {replicated(mesh)}
    return reports, jax.device_get(state)


@pytest.fixture(scope="module")
def alone(model, batch):
    return trained(model, batch, jit_step, 1)


@pytest.mark.parametrize(
    "parallel, devices, accumulation",
    [
        (jit_step, 4, 1),
        (jit_step, 4, 2),
        (pmap_step, 1, 1),
        (pmap_step, 4, 2),
        (shard_map_step, 4, 2),
    ],
)
def test_several_devices_give_what_one_gives(model, batch, alone, parallel, devices, accumulation):
    """Dropout included, and the weights' average.

    The sums of a few hundred terms are cut differently, and rounding differs in the last bit or
    two, which is 1e-7 of a value; there is room for ten times that.
    """
    reports, state = trained(model, batch, parallel, devices, accumulation)
    expected_reports, expected = alone
    close(reports, expected_reports, rtol=2e-6)
    close(state, expected, rtol=2e-6, atol=2e-6)


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("parallel", [jit_step, pmap_step])
def test_a_batch_that_does_not_divide_is_refused(model, batch, parallel):
    step = parallel(data_mesh(jax.devices()[:4]), lambda state, batch: (state, batch))
    with pytest.raises(ValueError, match="6 examples cannot be divided evenly over 4 devices"):
        step(model, jax.tree.map(lambda leaf: leaf[:6], batch))

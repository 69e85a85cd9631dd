"""Freezing by name: what is frozen stays as it is, bit for bit, and everything else moves."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.cli.train import apply_override
from linax_like.tasks.base import classify
from linax_like.training import init_state, make_train_step, OptimizerConfig, text_run, train


FROZEN = ("stack/1/*", "*/down_proj", "embedding/*")


@pytest.fixture(scope="module")
def model():
    """Three layers in one stack of arrays, in which negative zeros tell `+ 0` from nothing."""
    experts = lx.MixtureOfExpertsConfig(3, 2, 8, bias_rate=0.5)
    block = lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), experts, layer_scale=1.0)
    stack = lx.StackConfig((((block,), 3),))
    model = lx.LanguageModelConfig(20, 8, stack).build(jr.key(0, impl="rbg"))
    where = lambda m: m.stack.groups[0][0].channel_mixer.gate_proj
    return eqx.tree_at(where, model, where(model).at[..., 0].set(-0.0))


def is_frozen(name):
    return name.startswith(("stack/1/", "embedding/")) or name.endswith("/down_proj")


def bits(model):
    return {k: np.asarray(v).tobytes() for k, v in lx.named_arrays(model).items()}


def token_loss(model, batch, keys):
    logits, aux = jax.vmap(model)(batch["inputs"], keys)
    return classify(logits, batch["targets"], aux)


def test_what_is_frozen_does_not_move_by_one_bit(model):
    cfg = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, average=0.9)
    optimizer = cfg.build(model, 10, FROZEN)
    state = init_state(model, optimizer, average=True, frozen=FROZEN)
    step = jax.jit(
        make_train_step(token_loss, optimizer, seed=0, average=0.9, frozen=FROZEN),
        donate_argnums=0,
    )
    tokens = np.random.default_rng(0).integers(0, 20, (4, 11))
    before = bits(model)
    state = jax.tree.map(jnp.array, state)
    for _ in range(3):
        state, _ = step(state, {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
    for after in (bits(state.model), bits(state.average)):
        for name, value in after.items():
            assert (value == before[name]) == is_frozen(name), name
    kept = {leaf.shape for leaf in jax.tree.leaves(state.optimizer)}
    assert model.embedding.table.shape not in kept, "nothing is kept of what is never moved"


def test_a_gradient_is_none_where_its_array_is_frozen(model):
    ones = jax.tree.map(jnp.ones_like, eqx.filter(model, lx.trainable(model, FROZEN)))
    kept = lx.keep_frozen(ones, jax.tree.map(jnp.zeros_like, ones), FROZEN)
    assert kept.embedding.table is None
    scale = kept.stack.groups[0][0].channel_scale
    np.testing.assert_array_equal(scale, np.repeat([[1.0], [0.0], [1.0]], 8, axis=1))


def test_patterns_name_something_and_leave_something(model):
    near = "`stack/\\*/chanel_mixer/\\*` fits no array.*`stack/./channel_mixer/"
    with pytest.raises(ValueError, match=near):
        lx.trainable(model, ("embedding/*", "stack/*/chanel_mixer/*"))
    with pytest.raises(ValueError, match="`\\*` freeze every array of the model: leave something"):
        lx.trainable(model, ("*",))
    with pytest.raises(ValueError, match="Patterns come as a tuple: \\('stack/\\*',\\)"):
        lx.trainable(model, "stack/*")


def test_a_run_keeps_its_patterns(tmp_path):
    run = apply_override(text_run(), 'frozen=["embedding/*", "*/norm/*"]')
    assert run.frozen == ("embedding/*", "*/norm/*")
    assert type(run).from_json(run.to_json()) == run
    wrong = dataclasses.replace(run, frozen=("encoder/*",))
    with pytest.raises(ValueError, match="`encoder/\\*` fits no array of this model"):
        train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()

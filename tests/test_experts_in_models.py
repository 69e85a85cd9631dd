"""Mixture of experts inside a model: what they tell the training loop, and generation by steps."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import linax_like as lx
from linax_like.tasks.base import classify
from linax_like.training import init_state, make_train_step
from linax_like.training.metrics import to_record


KEY = jr.key(0, impl="rbg")
FEATURES, TIME, REAL = 16, 24, 17
CONFIG = lx.MixtureOfExpertsConfig(
    5, top_k=2, expert_features=12, shared_features=8, balance_loss=0.5, z_loss=0.25
)


@pytest.fixture(scope="module")
def language_model():
    block = lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(state_dim=8), CONFIG)
    stack = lx.StackConfig((((block,), 3),))
    return lx.LanguageModelConfig(11, FEATURES, stack).build(KEY)


def test_experts_reach_the_training_loop():
    """Each of four layers its own: two kinds of experts in a pattern that is repeated.

    What is minimised are the auxiliary losses alone, and some positions are padding.
    """
    limited = CONFIG.updated("capacity", 0.75).updated("shared_features", None)
    biased = limited.updated("capacity", None).updated("bias_rate", 0.25)
    blocks = (
        lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), k) for k in (limited, biased)
    )
    stack = lx.StackConfig(((tuple(blocks), 2),))
    model = lx.LanguageModelConfig(11, FEATURES, stack).build(KEY)
    tokens = np.random.default_rng(1).integers(0, 11, (4, TIME + 1))

    @eqx.filter_jit
    @partial(eqx.filter_vmap, in_axes=(None, 0))
    def through(block, x):
        """What leaves a layer, what it tells, and what its experts read."""
        x = x + block.sequence_norm(x)
        h = block.channel_norm(x)
        y, aux = block.channel_mixer(h)
        return x + y, aux, h

    context = lx.SequenceContext(mask=jnp.arange(TIME) < REAL)

    def loss(model, tokens, keys):
        logits, aux = jax.vmap(lambda tokens: model(tokens, context=context))(tokens[:, :-1])
        metrics = classify(logits, tokens[:, 1:], aux)
        return metrics._replace(objective=metrics.aux.loss)

    def balanced(layer, h):
        """The bias after a step in which these positions were routed."""
        choices = np.argsort(-np.asarray(h @ layer.router.T), axis=-1)[..., :2]
        load = np.bincount(choices.ravel(), minlength=5)
        return -0.25 * np.sign(load - load.mean())

    x, told, moved = model.embedding.table[tokens[:, :REAL]], [], []
    for block in model.stack.layers():
        x, aux, read = through(block, x)
        told.append(aux)
        moved.append(balanced(block.channel_mixer, read))
    expected = np.stack(moved[1::2])
    assert (expected[0] != expected[1]).any()
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_train_step(loss, optimizer, seed=0))
    state, report = step(init_state(model, optimizer), tokens)
    _, biased = state.model.stack.groups[0]
    np.testing.assert_array_equal(biased.channel_mixer.router_bias.offset.array, expected)
    change = jax.tree.map(jnp.subtract, state.model, model).stack.groups[0]
    for block in change:
        assert (jnp.abs(block.channel_mixer.router).max(axis=(1, 2)) > 1e-3).all()
    last = change[1].channel_mixer.down_proj[-1]
    assert (last == 0).all(), "nothing comes after the last experts that has a loss"
    sums = {name: sum(float(getattr(aux, name).sum()) for aux in told) for name in told[0]._fields}
    record = to_record(1, report)
    assert record["auxiliary_loss"] == pytest.approx(sums["loss"] / 4, rel=1e-5)
    assert record["dropped"] == pytest.approx(sums["dropped"] / sums["routed"]) and sums["dropped"]
    assert record["load"] == pytest.approx(sums["busiest"] / sums["routed"])
    assert sums["routed"] == 4 * REAL * 2 * 4


def test_steps_are_the_whole(language_model):
    tokens = jnp.arange(TIME) % 11
    state, logits = language_model.init_state(TIME), []
    step = eqx.filter_jit(lambda state, token: language_model.step(state, token))
    for token in tokens:
        state, out = step(state, token)
        logits.append(out.logits)
    np.testing.assert_allclose(jnp.stack(logits), language_model(tokens).logits, atol=1e-5)

"""The adaptive block: the identity at first, its steps, grids, padding, and a missing condition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import KEY

import linax_like as lx


X = jr.normal(jr.key(1, impl="rbg"), (5, 8))
HERE = lx.SequenceContext(condition=jnp.array([1.0, -2.0, 0.5]))


@pytest.fixture(scope="module")
def block():
    return lx.AdaptiveBlockConfig(lx.LRUSequenceMixerConfig(state_dim=4), 3).build(8, KEY)


@pytest.fixture(scope="module")
def trained(block):
    """The same with a condition that makes a difference."""
    weight = 0.3 * jr.normal(KEY, block.condition_proj.shape)
    return eqx.tree_at(lambda b: b.condition_proj, block, weight)


def test_a_fresh_block_is_the_identity_that_can_learn(block):
    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def run(block):
        return jnp.sum((block(X, context=HERE)[0] - X - 1) ** 2)

    distance, gradient = run(block)
    assert distance == X.size
    _, _, gate, _, _, second_gate = np.split(np.asarray(gradient.condition_proj), 6)
    assert np.abs(gate).min() > 0 and np.abs(second_gate).min() > 0


def test_it_is_the_papers_formula(trained):
    c = HERE.condition
    parts = np.split(np.asarray(trained.condition_proj @ jax.nn.silu(c)), 6)
    shift, scale, gate, shift2, scale2, gate2 = parts
    x = X + gate * trained.sequence_mixer(trained.sequence_norm(X) * (1 + scale) + shift)
    x = x + gate2 * trained.channel_mixer(trained.channel_norm(x) * (1 + scale2) + shift2)
    np.testing.assert_allclose(trained(X, context=HERE)[0], x, atol=1e-5)
    other = lx.SequenceContext(condition=-c)
    assert np.abs(trained(X, context=other)[0] - x).max() > 0.1


def test_steps_are_the_whole(trained):
    """In a stack, after a prefill."""
    stack = lx.StackConfig(((((trained.config),), 1),)).build(8, KEY)
    stack = eqx.tree_at(
        lambda s: s.groups[0][0].condition_proj, stack, trained.condition_proj[None]
    )
    assert stack.uses == {"condition"} and stack.causal

    @eqx.filter_jit
    def forms(stack):
        state, first = stack.prefill(stack.init_state(5), X[:4], context=HERE)
        _, last = stack.step(state, X[4], context=HERE)
        return jnp.concatenate([first, last[None]]), stack(X, context=HERE)[0]

    parts, whole = forms(stack)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_padding_leaves_no_trace(trained):
    """In front, where a mixer that did not know of it would carry it on."""
    mask = jnp.arange(5) >= 2
    y, _ = trained(X.at[:2].set(jnp.nan), context=HERE.replace(mask=mask))
    np.testing.assert_allclose(y[2:], trained(X[2:], context=HERE)[0], atol=1e-6)


def test_a_missing_condition_is_told(block):
    with pytest.raises(ValueError, match=r"a vector of shape \(3,\). Received None"):
        block(X)
    with pytest.raises(ValueError, match=r"Received \(2,\)"):
        block(X, context=lx.SequenceContext(condition=jnp.ones(2)))
    mixer = lx.QKVSequenceMixerConfig(lx.AttentionOperatorConfig(causal=False))
    grid = lx.AdaptiveBlockConfig(mixer, 3).build(8, KEY)
    shapes = eqx.filter_eval_shape(grid, jnp.ones((2, 3, 8)), context=HERE)
    assert shapes[0].shape == (2, 3, 8)
    with pytest.raises(ValueError, match="is not causal"):
        grid.init_state(4)

"""What mLSTM promises beyond the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.mlstm import mlstm, mlstm_scaled

import linax_like as lx


CONFIGS = [
    lx.MLSTMSequenceMixerConfig(chunk=4),
    lx.MLSTMSequenceMixerConfig(1, head_dim=3, value_head_dim=5, short_width=2, soft_cap=None),
]
X = np.random.default_rng(0).normal(size=(24, 8))


def driven(config, key, scale):
    """A mixer whose gates swing between about `-2 scale` and `2 scale`."""
    mixer = config.build(8, key)
    where = lambda m: (m.input_gate_proj, m.forget_gate_proj, m.input_gate_bias)
    gates = (
        scale * mixer.input_gate_proj,
        scale * mixer.forget_gate_proj,
        mixer.input_gate_bias * 0,
    )
    return eqx.tree_at(where, mixer, gates)


def in_float64(mixer):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mixer)


@pytest.mark.parametrize("scale", [1, 20])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_steps_are_the_sequence_in_float64(config, scale, key):
    with jax.enable_x64():
        mixer, x = driven(config, key, scale), jnp.asarray(X)
        start = mixer.init_state(24, x.dtype)
        got = eqx.filter_jit(lx.fold)(mixer, start, x)
        expected = eqx.filter_jit(mixer.prefill)(start, x)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_scale_makes_no_difference(config, key):
    """Outputs are those of the recurrence without it, and so are gradients, by differences."""
    with jax.enable_x64():
        mixer, x = driven(config, key, 2.0), jnp.asarray(X)
        weight = np.random.default_rng(1).normal(size=X.shape)
        exact = in_float64(mixer)
        np.testing.assert_allclose(eqx.filter_jit(mixer)(x), mlstm(exact, X)[0], atol=1e-12)
        mixer = jax.tree.map(jnp.asarray, exact)
        state = eqx.filter_jit(mixer.prefill)(mixer.init_state(24, x.dtype), x)[0]
        assert np.any(state.log_scale > 0)
        loss = lambda inputs: jnp.sum(inputs[0](inputs[1]) * weight)
        grads = eqx.filter_jit(eqx.filter_grad(loss))((mixer, x))
        leaves, structure = jax.tree.flatten((exact, X))
        for i, grad in enumerate(jax.tree.leaves(grads)):
            direction = np.random.default_rng(i).normal(size=grad.shape)

            def total(step, i=i, direction=direction):
                moved = [*leaves[:i], leaves[i] + step * direction, *leaves[i + 1 :]]
                moved, x = jax.tree.unflatten(structure, moved)
                return np.sum(mlstm(moved, x)[0] * weight)

            slope = (total(1e-6) - total(-1e-6)) / 2e-6
            np.testing.assert_allclose(np.sum(grad * direction), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", [50.0, 1000.0])
def test_any_gate_is_right_and_finite(scale, key):
    """Without a cap: the recurrence alone would overflow."""
    mixer = driven(lx.MLSTMSequenceMixerConfig(2, soft_cap=None, chunk=8), key, scale)
    logits = X @ np.asarray(mixer.input_gate_proj).T
    assert logits.max() > scale
    assert logits.min() < -scale
    with np.errstate(over="ignore", divide="ignore"):
        expected = mlstm_scaled(in_float64(mixer), X)[0]
    run = eqx.filter_jit(eqx.filter_value_and_grad(lambda m, x: jnp.sum(m(x) ** 2)))
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(eqx.filter_jit(mixer)(x), expected, atol=1e-3)
    for leaf in jax.tree.leaves(run(mixer, x)):
        assert np.isfinite(leaf).all()
    with jax.enable_x64():
        np.testing.assert_allclose(eqx.filter_jit(mixer)(jnp.asarray(X)), expected, atol=1e-9)


def test_the_gates_begin_as_published(key):
    mixer = lx.MLSTMSequenceMixerConfig().build(64, key)
    np.testing.assert_array_equal(mixer.input_gate_bias, -10)
    np.testing.assert_allclose(mixer.forget_gate_bias, [3, 4, 5, 6])
    assert (mixer.head_dim, mixer.value_head_dim) == (8, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be positive"),
        ({"soft_cap": 0.0}, "`soft_cap` must be positive"),
        ({"short_width": 0}, "`short_width` must be positive"),
        ({"num_heads": 3}, "needs a width that `num_heads` divides. Received in_features=8"),
        ({"value_head_dim": 3}, "needs values of even size, not 3, half of which is a key's"),
    ],
)
def test_mistakes_are_explained(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        lx.MLSTMSequenceMixerConfig(**arguments).build(8, key)

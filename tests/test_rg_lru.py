"""What the RG-LRU promises beyond the laws and the golden numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx
from linax_like.sequence_mixers.rg_lru import bounded_sqrt


@pytest.fixture(scope="module")
def mixer(key):
    return lx.RGLRUSequenceMixerConfig(num_heads=2).build(8, key)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)), jnp.float32)


def test_the_slope_of_the_root_is_bounded():
    """Forwards and backwards; and it is the root's elsewhere."""
    x = jnp.asarray([0.0, 1e-8, 1e-6, 0.25, 1.0])
    slope = jax.vmap(jax.grad(bounded_sqrt))(x)
    np.testing.assert_allclose(slope, [1000, 1000, 500, 1, 0.5], rtol=1e-6)
    _, forwards = jax.jvp(bounded_sqrt, (x,), (jnp.ones(5),))
    np.testing.assert_allclose(forwards, slope)
    np.testing.assert_array_equal(bounded_sqrt(x), jnp.sqrt(x))


def test_a_state_that_never_fades_has_a_gradient(mixer, x):
    """With a closed recurrence gate a = 1: nothing comes in but the first position."""
    closed = eqx.tree_at(lambda m: m.decay_gate_bias, mixer, jnp.full((2, 4), -200.0))
    state, _ = eqx.filter_jit(closed.prefill)(closed.init_state(12), x)
    first, _ = eqx.filter_jit(closed.prefill)(closed.init_state(12), x[:1])
    np.testing.assert_allclose(state.recurrent, first.recurrent, rtol=1e-5, atol=1e-6)
    grads = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.sum(m(x) ** 2)))(closed)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_document_begins_without_the_root(mixer, x):
    """The first position counts in full, also after padding, and also in a step."""
    u = x[0] @ mixer.in_proj.T * mixer.short_weight[-1]
    gates = jnp.einsum("hi,hoi->ho", u.reshape(2, 4), mixer.input_gate_weight).reshape(8)
    expected = jax.nn.sigmoid(gates) * u
    begin = mixer.init_state(12)
    np.testing.assert_allclose(mixer.step(begin, x[0])[0].recurrent, expected, rtol=1e-5)
    padded = jnp.concatenate([x[1:4], x[:1]])
    context = lx.SequenceContext(mask=jnp.arange(4) == 3)
    state, _ = mixer.prefill(begin, padded, context=context)
    np.testing.assert_allclose(state.recurrent, expected, rtol=1e-5)
    assert state.begun
    context = lx.SequenceContext(mask=jnp.zeros(4, bool))
    assert not mixer.prefill(begin, padded, context=context)[0].begun


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (24, 3), (64, 1), (512, 2)])
def test_blocks_adapt_to_the_width(width, heads, key):
    mixer = lx.RGLRUSequenceMixerConfig().build(width, key)
    assert mixer.num_heads == heads
    assert mixer.input_gate_weight.shape == (heads, width // heads, width // heads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lru_width": 0}, "`lru_width` must be positive"),
        ({"num_heads": 0}, "`num_heads` must be positive"),
        ({"short_width": 0}, "`short_width` must be positive"),
        ({"min_radius": 0.0}, "`min_radius` must be positive"),
        ({"max_radius": 1.0}, "`max_radius` must be above min_radius and below 1"),
        ({"states": "imaginary"}, "`RGLRUSequenceMixerConfig.states` must be one of"),
        ({"num_heads": 3}, "`num_heads` must be a divisor of the recurrence's width 8"),
        (
            {"lru_width": 9, "num_heads": 3, "states": "complex"},
            "`states` must be 'real' where blocks have an odd number of features: here 3",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        lx.RGLRUSequenceMixerConfig(**arguments).build(8, key)

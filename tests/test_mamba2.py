"""What Mamba-2 promises beyond the laws and the golden numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import linax_like as lx


CONFIG = lx.Mamba2SequenceMixerConfig(4, head_dim=4, num_groups=2, chunk=5)


@pytest.fixture(scope="module")
def mixer(key):
    return CONFIG.build(8, key)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)), jnp.float32)


def prefill(mixer, x, timesteps=None):
    context = lx.SequenceContext(timesteps=timesteps)
    return eqx.filter_jit(mixer.prefill)(mixer.init_state(len(x)), x, context=context)


def test_timesteps_of_one_change_nothing(mixer, x):
    got, expected = prefill(mixer, x, jnp.ones(12)), prefill(mixer, x)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-6)


def test_timesteps_scale_the_decay_alone(mixer, x):
    """An event a long time after the others meets an empty state, and has the weight it always has."""
    late = prefill(mixer, x, jnp.ones(12).at[-1].set(1e9))[0].heads
    usual, before = (prefill(mixer, x[:end])[0].heads for end in (12, 11))
    timeless = prefill(mixer, x, jnp.ones(12).at[-1].set(0.0))[0].heads
    np.testing.assert_allclose(timeless - before, late, rtol=1e-4, atol=1e-5)
    assert np.abs(usual - late).max() > 1e-3


def test_steps_are_the_sequence_in_float64(key):
    """To the last bits, with a clipped Δ and irregular timesteps."""
    config = lx.Mamba2SequenceMixerConfig(4, num_groups=1, dt_limits=(0.02, 0.05), chunk=4)
    with jax.enable_x64():
        x = jnp.asarray(np.random.default_rng(0).normal(size=(11, 8)))
        mixer = config.build(8, key)
        context = lx.SequenceContext(timesteps=jnp.linspace(0.1, 3, 11))
        start = mixer.init_state(11, x.dtype)
        got = eqx.filter_jit(lx.fold)(mixer, start, x, context=context)
        expected = eqx.filter_jit(mixer.prefill)(start, x, context=context)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-13)


def test_step_sizes_start_in_their_range(key):
    mixer = lx.Mamba2SequenceMixerConfig(head_dim=4, dt_floor=0.002).build(512, key)
    dt = np.asarray(jax.nn.softplus(mixer.dt_bias))
    assert 0.002 * (1 - 1e-4) <= dt.min() < 0.00201
    assert 0.08 < dt.max() <= 0.1 * (1 + 1e-4)
    assert abs(np.median(dt) - 0.01) < 0.003
    rate = np.exp(mixer.log_decay)
    assert 1 <= rate.min() < 1.5
    assert 15 < rate.max() <= 16


@pytest.mark.parametrize(("width", "heads", "head"), [(8, 1, 16), (24, 3, 16), (512, 16, 64)])
def test_heads_adapt_to_the_width(width, heads, head, key):
    mixer = lx.Mamba2SequenceMixerConfig().build(width, key)
    assert (mixer.num_heads, mixer.head_dim) == (heads, head)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 0}, "`head_dim` must be positive"),
        ({"chunk": 0}, "`chunk` must be positive"),
        ({"dt_min": 0.2}, "`dt_max` must be at least dt_min"),
        ({"dt_limits": (0.5, 0.1)}, "`dt_limits` must be two numbers from 0 on"),
        ({"head_dim": 5}, r"`head_dim` must be a divisor of the expanded width 16 \(expand times"),
        (
            {"head_dim": 4, "num_groups": 3},
            "`num_groups` must be a divisor of the 4 heads that width 8 has: try another head_dim",
        ),
    ],
)
def test_mistakes_are_explained(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        lx.Mamba2SequenceMixerConfig(**arguments).build(8, key)

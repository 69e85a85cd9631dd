"""What Mamba promises beyond the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx


KEY = jr.key(0, impl="rbg")
TIMESTEPS = np.random.default_rng(0).uniform(0.2, 3.0, 11)
CONFIGS = [
    lx.MambaSequenceMixerConfig(4, discretization="bilinear", short_width=1),
    lx.MambaSequenceMixerConfig(4, discretization="dirac", short_bias=False),
    lx.MambaSequenceMixerConfig(4, discretization="bilinear", eigenvalues="complex", dt_rank=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["bilinear", "dirac", "complex_bilinear"])
def test_steps_are_the_whole(config):
    """In float64, at irregular times, for the options that the laws do not see."""
    with jax.enable_x64():
        mixer = config.build(8, KEY)
        x = jr.normal(KEY, (11, 8), jnp.float64)
        context = lx.SequenceContext(timesteps=jnp.asarray(TIMESTEPS))
        state = mixer.init_state(11, x.dtype)
        got = eqx.filter_jit(lx.fold)(mixer, state, x, context=context)
        expected = eqx.filter_jit(mixer.prefill)(state, x, context=context)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-13)


def outputs(config, timesteps):
    mixer = config.build(8, KEY)
    context = lx.SequenceContext(timesteps=jnp.asarray(timesteps, jnp.float32))
    x = jr.normal(KEY, (11, 8))
    return eqx.filter_jit(mixer)(x, context=context), eqx.filter_jit(mixer)(x)


def test_timesteps_of_one_change_nothing_unless_learned():
    scaled, plain = outputs(lx.MambaSequenceMixerConfig(), np.ones(11))
    np.testing.assert_allclose(scaled, plain, rtol=1e-6, atol=1e-7)
    learned, plain = outputs(lx.MambaSequenceMixerConfig(timestep_decay="learned"), np.ones(11))
    assert np.abs(learned - plain).max() > 1e-4


@pytest.mark.parametrize("rule", ["scaled", "learned"])
def test_an_event_keeps_its_weight_but_not_its_past(rule):
    """After a very long time nothing is left of the past, and the present counts in full."""
    mixer = lx.MambaSequenceMixerConfig(short_width=1, timestep_decay=rule).build(8, KEY)
    x = jr.normal(KEY, (2, 8))
    context = lx.SequenceContext(timesteps=jnp.array([1.0, 1e6]))
    y = eqx.filter_jit(mixer)(x, context=context)
    np.testing.assert_allclose(y[1], mixer(x[1:])[0], rtol=1e-5, atol=1e-6)


def test_initial_step_sizes():
    cfg = lx.MambaSequenceMixerConfig(dt_min=1e-5, timestep_decay="learned")
    mixer = cfg.build(512, KEY)
    for bias in (mixer.dt_bias, mixer.decay_dt_bias):
        step = np.log1p(np.exp(np.asarray(bias, np.float64)))
        assert 0.9e-4 < step.min() < 1.1e-4  # dt_floor
        assert 0.05 < step.max() < 0.101
    assert not np.array_equal(mixer.dt_bias, mixer.decay_dt_bias)


def test_complex_states_come_in_pairs():
    mixer = lx.MambaSequenceMixerConfig(16, eigenvalues="complex").build(8, KEY)
    assert mixer.init_state(4).recurrent.real.shape == (16, 8)
    assert mixer.select_proj.shape == (1 + 2 * 16, 16)


def test_memory_does_not_hold_the_states():
    """The gradient of the mixer, by what XLA sets aside for it."""
    time, width, state_dim = 4096, 32, 64
    mixer = lx.MambaSequenceMixerConfig(state_dim).build(width, KEY)
    loss = lambda x: jnp.sum(mixer(x) ** 2)
    compiled = jax.jit(jax.grad(loss)).lower(jnp.zeros((time, width))).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < time * 2 * width * state_dim * 4 / 2


@pytest.mark.parametrize(
    "make, law",
    [
        (lambda: lx.MambaSequenceMixerConfig(0), "state_dim.*positive"),
        (lambda: lx.MambaSequenceMixerConfig(5, eigenvalues="complex"), "state_dim=5.*even"),
        (lambda: lx.MambaSequenceMixerConfig(dt_rank=0), "dt_rank=0.*positive or None"),
        (lambda: lx.MambaSequenceMixerConfig(dt_min=0.2), "dt_max=0.1.*at least dt_min"),
        (lambda: lx.MambaSequenceMixerConfig(dt_floor=0.0), "dt_floor=0.0.*positive"),
        (lambda: lx.MambaSequenceMixerConfig(discretization="mamba"), "discretization.*'euler'"),
        (lambda: lx.MambaSequenceMixerConfig(timestep_decay="async"), "timestep_decay.*'learned'"),
    ],
)
def test_configs_name_what_is_wrong(make, law):
    with pytest.raises(ValueError, match=f"MambaSequenceMixerConfig.*{law}"):
        make()

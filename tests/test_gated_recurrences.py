"""What HGRN, minGRU, minLSTM and S7 promise beyond the laws."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.ops.gelu import gelu
from linax_like.ops.positive import positive


KEY = jr.key(0, impl="rbg")
X = jr.normal(KEY, (20, 8))
CONFIGS = [
    lx.MinGRUSequenceMixerConfig(2),
    lx.MinGRUSequenceMixerConfig(candidate="positive"),
    lx.MinLSTMSequenceMixerConfig(),
    lx.MinLSTMSequenceMixerConfig(2, "positive"),
    lx.HGRNSequenceMixerConfig(),
    lx.S7SequenceMixerConfig(3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_steps_are_the_whole(config):
    """In float64, with the states."""
    with jax.enable_x64():
        mixer, x = config.build(8, KEY), jnp.asarray(X, jnp.float64)
        start = mixer.init_state(20, x.dtype)
        folded = eqx.filter_jit(lx.fold)(mixer, start, x)
        whole = eqx.filter_jit(mixer.prefill)(start, x)
        for got, want in zip(folded, whole, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("config", CONFIGS[:5], ids=str)
def test_states_are_averages(config):
    """However hard the gates are driven, in either direction."""
    mixer = config.build(8, KEY)
    for scale in (1e-3, 1.0, 1e4):
        decay, drive, *_ = mixer._gates(scale * X)
        assert np.all((decay >= 0) & (decay <= 1))
        assert np.isfinite(drive).all()
        grad = eqx.filter_grad(lambda x, m: jnp.sum(m(x)))(scale * X, mixer)
        assert np.isfinite(grad).all()


def test_min_lstm_forgets_and_admits_in_proportion_when_both_gates_are_shut():
    """σ(-200) is no float32, yet the ratio of two of them is."""
    mixer = lx.MinLSTMSequenceMixerConfig().build(8, KEY)
    shut = jnp.concatenate([jnp.full(8, -200.0), jnp.full(8, -201.0)])
    mixer = eqx.tree_at(lambda m: m.gate_bias, mixer, shut)
    decay, _ = mixer._gates(jnp.zeros(8))
    np.testing.assert_allclose(decay, 1 / (1 + np.exp(-1)), rtol=1e-5)


def test_hgrn_keeps_at_least_its_lower_bound():
    mixer = lx.HGRNSequenceMixerConfig(lower_bound=0.75).build(8, KEY)
    decay, _, _ = mixer._gates(1e3 * X)
    assert decay.min() >= 0.75
    assert decay.min() < 0.76 and decay.max() > 0.99


def test_positive_has_no_jump():
    x = jnp.linspace(-20, 20, 4001)
    y = positive(x)
    assert np.all(y > 0)
    assert np.all((np.diff(y) > 0) & (np.diff(y) < 0.0101))
    assert positive(jnp.zeros(())) == 0.5


@pytest.mark.parametrize("gradient", [False, True])
def test_s7_never_holds_the_matrices_of_all_positions(gradient):
    """B and C of every position would be 2 × state times the signal."""
    time, width, state = 2048, 32, 64
    mixer = lx.S7SequenceMixerConfig(state).build(width, KEY)
    loss = lambda x, mixer: jnp.sum(mixer(x) ** 2)
    run = eqx.filter_jit(eqx.filter_grad(loss) if gradient else loss)
    compiled = run.lower(jnp.zeros((time, width)), mixer).compile()
    memory: Any = compiled.compiled.memory_analysis()
    assert memory.temp_size_in_bytes < time * width * state * 4 / 2


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: lx.MinGRUSequenceMixerConfig(0), "MinGRUSequenceMixerConfig.*expand.*positive"),
        (
            lambda: lx.MinGRUSequenceMixerConfig(candidate="log"),  # type: ignore
            "MinGRUSequenceMixerConfig.candidate.*'linear', 'positive'",
        ),
        (lambda: lx.MinLSTMSequenceMixerConfig(-1), "MinLSTMSequenceMixerConfig.*expand"),
        (lambda: lx.HGRNSequenceMixerConfig(lower_bound=1.0), "lower_bound.*in \\[0, 1\\)"),
        (lambda: lx.S7SequenceMixerConfig(0), "S7SequenceMixerConfig.*state_dim.*positive"),
        (lambda: lx.S7SequenceMixerConfig(dt=0.0), "S7SequenceMixerConfig.*dt.*positive"),
    ],
)
def test_configs_name_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_gelu_is_exact_and_so_is_its_derivative():
    with jax.enable_x64():
        x = jnp.concatenate([jnp.linspace(-40, 40, 801), jnp.asarray([-1e200, 1e200])])
        exact = lambda x: jax.nn.gelu(x, approximate=False)
        np.testing.assert_allclose(gelu(x), exact(x), rtol=1e-13)
        inside = x[:-2]
        slope = lambda f: jax.vmap(jax.grad(f))(inside)
        np.testing.assert_allclose(slope(gelu), slope(exact), rtol=1e-12, atol=1e-15)

"""Distilled convolutions: what is exact stays so, and what is not is measured."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.inference.distill import _leading_directions, fit_exponentials


KEY = jr.key(0, impl="rbg")
LENGTH = 100
CONVOLUTION = lx.CKConvSequenceMixerConfig(kernel=lx.SIRENKernelConfig(8, 1, (1.0,)), extent=100.0)


def exponentials(poles, residues, length=LENGTH):
    return (residues * np.power(poles, np.arange(length)[:, None])).real.sum(axis=1)


@pytest.fixture(scope="module")
def model():
    hyena = lx.QKVSequenceMixerConfig(lx.HyenaOperatorConfig(2, CONVOLUTION))
    pattern = tuple(map(lx.ResidualBlockConfig, (CONVOLUTION, hyena)))
    return lx.LanguageModelConfig(17, 4, lx.StackConfig(((pattern, 2),))).build(KEY)


@pytest.fixture(scope="module")
def distilled(model):
    return lx.distill(model, 8, LENGTH)


@pytest.mark.parametrize("real", [False, True])
def test_a_sum_of_exponentials_is_recovered(real):
    rng = np.random.default_rng(0)
    angles = np.zeros(4) if real else np.array([0.1, 0.7, 1.5, 3.0])
    poles = np.array([0.99, 0.95, 0.9, 0.7]) * np.exp(1j * angles)
    residues = rng.normal(size=4) + 0j if real else rng.normal(size=4) + 1j * rng.normal(size=4)
    kernel = np.float32(exponentials(poles, residues)).astype(np.float64)
    got = exponentials(*fit_exponentials(kernel, 8))
    np.testing.assert_allclose(got, kernel, atol=1e-5 * np.abs(kernel).max())


def test_directions_are_those_of_the_hankel_matrix():
    """Of a kernel that no small state could make, they hold as much of it as any."""
    kernel = np.random.default_rng(1).normal(size=LENGTH)
    hankel = kernel[np.add.outer(np.arange(51), np.arange(50))]
    held = np.linalg.norm(_leading_directions(kernel, 6).T @ hankel)
    assert held > 0.99 * np.linalg.norm(np.linalg.svd(hankel)[1][:6])


def test_a_mixer_with_such_a_kernel_becomes_that_recurrence():
    config = dataclasses.replace(CONVOLUTION, num_heads=2)
    mixer = config.build(4, KEY).materialize((LENGTH,))
    kernel = np.tile(np.array([0.97, 0.9]) ** np.arange(LENGTH)[:, None], 2)
    mixer = eqx.tree_at(lambda m: m.sampled.array, mixer, jnp.asarray(kernel, jnp.float32))
    distilled, errors = lx.distill(mixer, 4, LENGTH)
    assert max(errors[""]) < 1e-5
    x = jr.normal(KEY, (LENGTH, 4))
    np.testing.assert_allclose(distilled(x), mixer(x), atol=1e-5)


def test_poles_stay_inside_the_unit_circle():
    growing, nothing = 1.02 ** np.arange(LENGTH), np.zeros(LENGTH)
    for kernel in (growing, nothing):
        poles, residues = fit_exponentials(kernel, 4)
        assert poles.shape == residues.shape == (2,)
        assert np.all(np.abs(poles) < 1) and np.all(np.isfinite(residues))
    assert not residues.any()


def test_more_states_come_closer(model):
    reports = [lx.distill(model, state_dim, LENGTH)[1] for state_dim in (2, 6, 18)]
    for name in reports[0]:
        few, some, many = (report[name].mean for report in reports)
        assert few > 1.5 * some > 2 * many, name


def test_the_report_is_what_an_impulse_measures(model, distilled):
    other, errors = distilled
    layers = tuple(zip(model.stack.layers(), other.stack.layers(), strict=True))
    assert set(errors) == {
        "stack/0/sequence_mixer",
        "stack/1/sequence_mixer/operator/convolutions/0",
        "stack/2/sequence_mixer",
        "stack/3/sequence_mixer/operator/convolutions/0",
    }
    impulse = jnp.zeros((LENGTH, 4)).at[0].set(1.0)
    for layer in (0, 2):
        before, after = (block.sequence_mixer for block in layers[layer])
        kernel, got = (np.asarray(m(impulse) - m.skip * impulse) for m in (before, after))
        norm = np.linalg.norm(got - kernel, axis=0) / np.linalg.norm(kernel, axis=0)
        lag = np.abs(got - kernel).max(axis=0) / np.abs(kernel).max(axis=0)
        measured = norm.max(), norm.mean(), lag.max(), lag.mean()
        np.testing.assert_allclose(errors[f"stack/{layer}/sequence_mixer"], measured, rtol=1e-3)


def test_a_distilled_model_decodes_what_it_reads(distilled):
    model, _ = distilled
    tokens = jnp.arange(30) % 17
    whole = np.asarray(jax.jit(lambda t: model(t).logits)(tokens))
    state, start = model.prefill(model.init_state(30), tokens[:20])
    step = lambda state, token: (lambda state, out: (state, out.logits))(*model.step(state, token))
    _, rest = jax.lax.scan(step, state, tokens[20:])
    np.testing.assert_allclose(np.concatenate([start.logits, rest]), whole, atol=1e-4)
    assert {leaf.shape[-2:] for leaf in jax.tree.leaves(state.blocks[0][0])} == {(4, 4)}


def test_a_distilled_model_is_what_its_config_says_and_survives_its_folder(distilled, tmp_path):
    model, _ = distilled
    assert model.config.stack == model.stack.config
    pattern, _ = model.config.stack.groups[0]
    recurrence = lx.S4DSequenceMixerConfig(8, discretization="dirac")
    assert pattern[0].sequence_mixer == recurrence
    assert pattern[1].sequence_mixer.operator.recurrence == recurrence
    lx.save_pretrained(model, tmp_path / "saved")
    again = lx.load_pretrained(tmp_path / "saved")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, model))


def test_what_was_distilled_before_stays():
    hyena = lx.QKVSequenceMixerConfig(lx.HyenaOperatorConfig(2, CONVOLUTION)).build(2, KEY)
    before, _ = lx.distill(hyena, 8, LENGTH)
    (same, new), _ = lx.distill((before, hyena), 4, LENGTH)
    assert same.config == before.config
    assert new.config.operator.recurrence.state_dim == 4


def test_bad_requests_say_why(model):
    with pytest.raises(ValueError, match="`length` of at least 18 lags to find 8 poles"):
        lx.distill(model, 8, 17)
    with pytest.raises(ValueError, match=r"`recurrence` must be None, unless .* \('causal',\)"):
        on_grid = lx.CKConvSequenceMixerConfig(("zero",))
        lx.HyenaOperatorConfig(2, on_grid, recurrence=lx.S4DSequenceMixerConfig())
    with pytest.raises(ValueError, match="`state_dim` must be even"):
        lx.distill(model, 3, LENGTH)
    with pytest.raises(ValueError, match="`S5SequenceMixer` without a convolution to distill"):
        lx.distill(lx.S5SequenceMixerConfig(4).build(4, KEY), 8, 18)

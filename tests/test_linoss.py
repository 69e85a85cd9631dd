"""What LinOSS promises beyond the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx


KEY = jr.key(0, impl="rbg")
X = jr.normal(KEY, (20, 8))
VARIANTS = [("IM", False), ("IM", True), ("IMEX", False), ("IMEX", True)]


def matrices(mixer, timesteps=None):
    """The 2×2 matrix of every oscillator, in (z, s)."""
    x = X[:1] if timesteps is None else X[: len(timesteps)]
    keep, pull, dt = (np.asarray(c, np.float64) for c in mixer._system(x, timesteps)[0])
    return np.moveaxis(np.array([[keep, -pull], [dt * keep, 1 - dt * pull]]), (0, 1), (-2, -1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_are_the_whole(variant):
    """In float64, with the states, for the variants that no law runs."""
    with jax.enable_x64():
        mixer = lx.LinOSSSequenceMixerConfig(6, *variant).build(8, KEY)
        x = jnp.asarray(X, jnp.float64)
        start = mixer.init_state(20, x.dtype)
        folded = eqx.filter_jit(lx.fold)(mixer, start, x)
        whole = eqx.filter_jit(mixer.prefill)(start, x)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), folded, whole
        )


def test_it_starts_on_the_ring():
    cfg = lx.LinOSSSequenceMixerConfig(256, min_radius=0.7, max_phase=1.0)
    eigenvalues = np.linalg.eigvals(matrices(cfg.build(8, KEY)))
    assert np.all((0.699 < np.abs(eigenvalues)) & (np.abs(eigenvalues) < 1.001))
    assert np.all(np.abs(np.angle(eigenvalues)) < 1.001)
    assert np.abs(np.angle(eigenvalues)).max() > 0.9 and np.abs(eigenvalues).min() < 0.75


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_parameters_make_it_unstable(variant):
    mixer = lx.LinOSSSequenceMixerConfig(512, *variant).build(8, KEY)
    for scale in (1.0, 30.0, 1e3):
        stiffness, damping, logit = scale * jr.normal(KEY, (3, 512))
        wild = eqx.tree_at(
            lambda m: (m.stiffness, m.step_logit), mixer, (stiffness, logit / scale * 3)
        )
        if mixer.damping is not None:
            wild = eqx.tree_at(lambda m: m.damping, wild, damping)
        trace = np.trace(matrices(wild), axis1=-2, axis2=-1)
        keep = np.linalg.det(matrices(wild))
        assert np.all(keep <= 1 + 1e-4)
        assert np.all(np.abs(trace) <= 1 + keep + 1e-4)


def test_the_implicit_step_loses_energy_at_every_size():
    """z² + A s² never grows, whatever the timesteps: so no product of steps does."""
    mixer = lx.LinOSSSequenceMixerConfig(16, "IM", damping=False).build(8, KEY)
    root = np.sqrt(np.asarray(mixer.stiffness, np.float64))
    timesteps = jnp.asarray([0.0, 1e-3, 0.5, 1.0, 3.0, 50.0, 1e4])
    steps = matrices(mixer, timesteps)
    weight = np.stack([np.ones_like(root), root])
    energy = weight.T[:, :, None] * steps / weight.T[:, None, :]
    assert np.linalg.norm(energy, 2, axis=(-2, -1)).max() <= 1 + 1e-5


def test_timesteps_scale_the_step():
    mixer = lx.LinOSSSequenceMixerConfig(6, "IM").build(8, KEY)
    slow = jax.nn.sigmoid(mixer.step_logit) / 2
    half = eqx.tree_at(lambda m: m.step_logit, mixer, jnp.log(slow) - jnp.log1p(-slow))
    context = lx.SequenceContext(timesteps=jnp.full(20, 2.0))
    np.testing.assert_allclose(half(X, context=context), mixer(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_finite_at_the_edges(variant):
    """No stiffness, no damping, no step, and infinitely much of each."""
    mixer = lx.LinOSSSequenceMixerConfig(7, *variant).build(8, KEY)
    edges = jnp.asarray([0.0, 0.0, -1.0, 1e-20, 1e20, 1.0, 1e6])
    logits = jnp.asarray([0.0, -200.0, 200.0, -20.0, 0.0, -90.0, 90.0])
    mixer = eqx.tree_at(lambda m: (m.stiffness, m.step_logit), mixer, (edges, logits))
    if mixer.damping is not None:
        mixer = eqx.tree_at(lambda m: m.damping, mixer, edges[::-1])
    grad = eqx.filter_jit(eqx.filter_value_and_grad(lambda mixer: jnp.sum(mixer(X) ** 2)))
    value, grads = grad(mixer)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_mixed_step_refuses_timesteps():
    mixer = lx.LinOSSSequenceMixerConfig(6).build(8, KEY)
    assert "timesteps" not in mixer.uses
    context = lx.SequenceContext(timesteps=jnp.ones(20))
    with pytest.raises(ValueError, match="`LinOSSSequenceMixer`.*timesteps.*discretization='IM'"):
        mixer(X, context=context)


@pytest.mark.parametrize(
    "wrong, field",
    [
        ({"state_dim": 0}, "state_dim"),
        ({"discretization": "EX"}, "discretization"),
        ({"min_radius": 1.0}, "min_radius"),
        ({"max_phase": 4.0}, "max_phase"),
    ],
)
def test_configs_name_what_is_wrong(wrong, field):
    with pytest.raises(ValueError, match=f"LinOSSSequenceMixerConfig.*{field}"):
        lx.LinOSSSequenceMixerConfig(**wrong)

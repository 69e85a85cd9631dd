"""What Hyena promises beyond the laws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from meshes import mesh_of

import linax_like as lx


FILTER = lx.ImplicitFilterConfig(8, 1, bands=4, time_scale=16)
CONFIG = lx.HyenaSequenceMixerConfig(filter=FILTER, max_documents=2)


@pytest.fixture(scope="module")
def mixer(key):
    return CONFIG.build(8, key)


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)), jnp.float32)


def test_kernels_do_not_depend_on_the_length(mixer):
    np.testing.assert_allclose(mixer.filter(40)[:10], mixer.filter(10), atol=1e-6)


def test_a_fresh_filter_has_about_unit_energy(key):
    kernels = lx.ImplicitFilterConfig().build(64, key)(4096)
    energy = jnp.sum(kernels**2, axis=0)
    assert 0.3 < jnp.mean(energy) < 3


def test_documents_beyond_the_maximum_are_nan(mixer, x):
    ids = jnp.repeat(jnp.arange(3), 4)
    y = eqx.filter_jit(mixer)(x, context=lx.SequenceContext(segment_ids=ids))
    assert np.isfinite(y[:8]).all()
    assert np.isnan(y[8:]).all()


def test_what_outgrows_its_state_is_nan(mixer, x):
    state, y = eqx.filter_jit(mixer.prefill)(mixer.init_state(8), x)
    assert np.isfinite(y[:8]).all()
    assert np.isnan(y[8:]).all()
    assert np.isnan(mixer.step(state, x[0])[1]).all()


def test_a_state_keeps_its_dtypes(mixer, x):
    """A history in half precision beside a signal in single precision, as generation may want it."""
    state = mixer.init_state(16, jnp.bfloat16)
    after, _ = eqx.filter_jit(mixer.prefill)(state, x)
    then, y = eqx.filter_jit(mixer.step)(after, x[0])
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert dtypes(state) == dtypes(after) == dtypes(then)
    assert y.dtype == jnp.float32


def test_features_that_devices_cannot_share_are_an_error(x):
    mesh = mesh_of(3, "time")
    mixer = CONFIG.build(8, jax.random.key(0))
    context = lx.SequenceContext(axis_name="time")
    split = lambda x: mixer(x, context=context)
    with pytest.raises(ValueError, match="a multiple of 3. Received 8"):
        jax.shard_map(split, mesh=mesh, in_specs=P("time"), out_specs=P("time"))(x)

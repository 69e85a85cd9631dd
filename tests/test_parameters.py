"""What is trained, what is only stored, and how much of it there is."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import linax_like as lx


class Small(eqx.Module):
    weight: jax.Array
    frequencies: lx.Buffer
    count: jax.Array
    name: str = eqx.field(static=True)


def build() -> Small:
    return Small(jnp.ones((2, 3)), lx.Buffer(jnp.arange(4.0)), jnp.arange(5), "small")


@pytest.mark.parametrize("make", (build, lambda: eqx.filter_eval_shape(build)))
def test_trainable(make):
    model = make()
    marks = lx.trainable(model)
    assert (marks.weight, marks.frequencies.array, marks.count) == (True, False, False)
    trained = eqx.filter(model, marks)
    assert [leaf.shape for leaf in jax.tree.leaves(trained)] == [(2, 3)]
    assert lx.count_parameters(model) == 6


def test_a_buffer_has_no_gradient():
    def loss(model):
        return jnp.sum(model.weight) * jnp.sum(model.frequencies.value)

    gradient = eqx.filter_grad(loss)(build())
    assert jnp.all(gradient.frequencies.array == 0)
    assert jnp.all(gradient.weight == 6)


def test_every_parameter_of_a_mixer_is_trained(key):
    mixer = lx.LRUSequenceMixerConfig(state_dim=4).build(8, key)
    assert lx.count_parameters(mixer) == sum(leaf.size for leaf in jax.tree.leaves(mixer))

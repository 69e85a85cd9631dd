"""Published numbers, and what is compared with them."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from complex_arrays import as_complex

import linax_like as lx
from linax_like.ops import ComplexPair


GOLDEN = Path(__file__).parent / "golden"
KEY = jr.key(0, impl="rbg")


def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key != "meta"}


def assert_close(got, expected, tolerance):
    """Relative to the largest entry, as the references' own tolerances are meant."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


def assert_gradients(d_mixer, expected, tolerance):
    for name, value in expected.items():
        assert_close(getattr(d_mixer, name), value, tolerance)


def pair(array):
    """(…, 2) of real and imaginary parts → the pair of them."""
    return np.moveaxis(np.asarray(array), -1, 0)


def with_arrays(mixer, **arrays):
    """The mixer with these parameters, in their own dtype: float64 under `jax.enable_x64`."""
    names = list(arrays)
    values = [jnp.asarray(arrays[name]) for name in names]
    for name, value in zip(names, values, strict=True):
        assert getattr(mixer, name).shape == value.shape, name
    return eqx.tree_at(lambda m: [getattr(m, name) for name in names], mixer, values)


@eqx.filter_jit
def run(mixer, x, loss, context=None):
    """Outputs, final states, and the gradient of `loss(outputs)` by the mixer and its input."""

    def total(inputs):
        mixer, x = inputs
        y = jax.vmap(lambda x, context: mixer(x, context=context))(x, context)
        return loss(y), y

    (_, y), (d_mixer, d_x) = eqx.filter_value_and_grad(total, has_aux=True)((mixer, x))
    return y, d_mixer, d_x


@eqx.filter_jit
def last_state(mixer, x, context=None):
    """The state after every sequence of the batch, as complex numbers."""

    def one(x, context):
        return mixer.prefill(mixer.init_state(len(x), x.dtype), x, context=context)[0]

    state = jax.vmap(one)(x, context)
    is_pair = lambda node: isinstance(node, ComplexPair)
    return jax.tree.map(lambda h: as_complex(h) if is_pair(h) else h, state, is_leaf=is_pair)


@eqx.filter_jit
def stepped(mixer, x, context=None):
    def one(x, context):
        return lx.fold(mixer, mixer.init_state(len(x), x.dtype), x, context=context)[1]

    return jax.vmap(one)(x, context)


def mean_square(y):
    return jnp.mean(y**2)


def parameters(data, prefix="p/"):
    return {
        k.removeprefix(prefix): jnp.asarray(v) for k, v in data.items() if k.startswith(prefix)
    }


def check_lrnnx(data, mixer_from, layer):
    """Outputs, stepwise outputs and gradients by the reference's own parameters.

    - `mixer_from`: the mixer that these parameters are.
    - `layer`: what the reference does to the mixer's output, `layer(y, x, parameters)`.
    """

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def grad(inputs):
        p, x = inputs
        y = layer(jax.vmap(mixer_from(p))(x), x, p)
        return mean_square(y), y

    p, x = parameters(data), jnp.asarray(data["x"])
    (d_p, d_x), y = grad((p, x))
    assert_close(y, data["y"], 1e-5)
    assert_close(layer(stepped(mixer_from(p), x), x, p), data["ystep"], 1e-5)
    assert_close(d_x, data["dx"], 1e-4)
    for name, value in parameters(data, "g/").items():
        assert_close(d_p[name], value, 1e-4)


def lrnnx_s4_output(y, x, p):
    """What the S4 and S4D of lrnnx do to their mixer's output."""
    gelu = lambda x: jax.nn.gelu(x, approximate=False)
    projected = gelu(gelu(y)) @ p["output_linear.0.weight"].T + p["output_linear.0.bias"]
    return gelu(projected)

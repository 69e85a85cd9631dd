"""Golden parity: implicit kernels, their masks, CKConv and Hyena on grids, as nvSubquadratic has them.

Its coordinates are the lag over `L_cache - 1`, which is our extent. Circular, its `L_cache` is
half the grid.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, KEY, load

import linax_like as lx


FORWARD, GRADIENT = 1e-5, 1e-4
# Another test here shows the same of other axes, or of what is built around it.
AGAIN = {
    "kernel": {"siren_1d", "siren_2d", "siren_3d"},
    "ckconv": {"1d_zero", "1d_circular", "2d_zero", "2d_circular"},
    "hyena": {"1d_circular", "2d_zero", "3d_circular"},
}
SIREN = lx.SIRENKernelConfig(16)
EMBEDDING = "positional_embedding.linear"
KERNELS = {  # the config, and the extent
    "siren_1d": (SIREN, (11,)),
    "siren_2d": (SIREN, (5, 5)),
    "siren_3d": (SIREN, (4, 4, 4)),
    "siren_aniso": (SIREN, (2, 5, 5)),
    "siren_extended_once": (SIREN, (7,)),
    "multiomega_1d": (
        lx.SIRENKernelConfig(16, frequencies=tuple(np.linspace(1, 12, 16).tolist())),
        (11,),
    ),
    "blockdiag_2d": (
        lx.SIRENKernelConfig(16, frequencies=(1.0, 12.0), off_block_scale=0.1),
        (5, 5),
    ),
    "blockdiag_learnable_2d": (
        lx.SIRENKernelConfig(16, frequencies=(1.0, 12.0), frequency="learned"),
        (5, 5),
    ),
    "siren_film_after_pos": (
        lx.SIRENKernelConfig(16, film=lx.KernelFiLMConfig(5, modulate_embedding=True)),
        (5, 5),
    ),
    "rff_2d": (lx.RandomFourierKernelConfig(16), (5, 5)),
}


def lags(sizes):
    axes = [np.arange(size) - size // 2 for size in sizes]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def siren_arrays(get):
    """A SIREN's arrays, or their gradients, in the order of our leaves."""
    arrays = [get(f"{EMBEDDING}.weight"), get(f"{EMBEDDING}.bias")]
    scale = get("positional_embedding.omega_0_scale")
    arrays += [] if scale is None else [scale]
    for kind in ("weight", "bias"):
        arrays += [get(f"hidden_linears.{i}.{kind}") for i in range(2)]
    arrays += [get("out_linear.weight"), get("out_linear.bias")]
    film = [get(f"film_generator.mlp.{i}.{kind}") for i in (0, 2) for kind in ("weight", "bias")]
    return arrays + [array for array in film if array is not None]


def fourier_arrays(get):
    arrays = [get(f"{EMBEDDING}.weight"), get(f"{EMBEDDING}.bias")]
    for kind in ("weight", "bias"):
        arrays += [get(f"kernel_network.{i}.{kind}") for i in (0, 2)]
    return [*arrays, get("out_linear.weight"), get("out_linear.bias")]


def fill(module, arrays):
    leaves, structure = jax.tree.flatten(module)
    assert [leaf.shape for leaf in leaves] == [np.shape(array) for array in arrays]
    return jax.tree.unflatten(structure, map(jnp.asarray, arrays))


def check(data, run, module, inputs, to_arrays):
    """Outputs and gradients of `run(module, *inputs)`."""

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def pull(everything):
        y = run(*everything)
        return jnp.sum(y * data["cotangent"]), y

    (_, y), (d_module, *d_inputs) = pull((module, *inputs))
    assert_close(y, data["out"], FORWARD)
    for got, expected in zip(jax.tree.leaves(d_module), to_arrays("grad"), strict=True):
        if expected is not None:
            assert_close(got, expected, GRADIENT)
    return d_inputs


def cases(kind, names):
    slow = lambda name: [pytest.mark.slow] if name in AGAIN[kind] else []
    return pytest.mark.parametrize("name", [pytest.param(n, marks=slow(n)) for n in names])


@cases("kernel", KERNELS)
def test_kernels(name):
    data, (config, extent) = load(f"nvsubquadratic/kernel_{name}"), KERNELS[name]
    arrays_of = fourier_arrays if name == "rff_2d" else siren_arrays
    arrays = lambda prefix: arrays_of(lambda key: data.get(f"{prefix}/{key}"))
    kernel = fill(config.build(len(extent), 8, KEY), arrays("param"))
    coordinates = jnp.asarray(lags(data["out"].shape[1:-1]) / extent, jnp.float32)
    if name == "rff_2d":  # its waves are fixed, which the published ones should be

        def expected(prefix):
            return [np.zeros((8, 2)), *arrays(prefix)[1:]]

    else:
        expected = arrays
    if "in/cond" not in data:
        run = lambda kernel: kernel(coordinates)[None]
        check(data, run, kernel, (), expected)
        return
    run = jax.vmap(lambda kernel, condition: kernel(coordinates, condition), in_axes=(None, 0))
    (d_condition,) = check(data, run, kernel, (jnp.asarray(data["in/cond"]),), expected)
    assert_close(d_condition, data["grad_in/cond"], GRADIENT)


MASKS = {
    "gaussian_direct": lx.GaussianMaskConfig(start=(0.0931981, 0.4659906)),
    "gaussian_log": lx.GaussianMaskConfig(start=(0.0931981, 0.4659906), parametrization="log"),
    "gaussian_softplus": lx.GaussianMaskConfig((0.0931981, 0.4659906), parametrization="softplus"),
    "blockaligned": lx.GaussianMaskConfig(start=(0.4659906, 0.0931981)),
    "exponential": lx.ExponentialMaskConfig(),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    data = load(f"nvsubquadratic/mask_{name}")
    mask = MASKS[name].build(2, 8, KEY)
    if name != "exponential":  # whose weights the published code trains, against its own words
        std = jnp.asarray(data["param/std_param"])  # the second axis starts narrower
        assert_close(mask.std[0], std[0], 1e-5)
        mask = eqx.tree_at(lambda mask: mask.std, mask, std)
    run = lambda mask, grid, x: mask(grid[0])[None] * x
    arrays = lambda prefix: [] if name == "exponential" else [data[f"{prefix}/std_param"]]
    inputs = jnp.asarray(data["in/grid"]), jnp.asarray(data["in/x"])
    d_grid, d_x = check(data, run, mask, inputs, arrays)
    away = data["in/grid"] != 0  # where |p| has a derivative
    assert_close(d_grid * away, data["grad_in/grid"] * away, GRADIENT)
    assert_close(d_x, data["grad_in/x"], GRADIENT)


def ckconv(kind, axes, extent):
    mask = lx.GaussianMaskConfig(bounds=(1e-3, 3.122))
    return lx.CKConvSequenceMixerConfig((kind,) * axes, mask=mask, extent=extent)


def ckconv_arrays(get, prefix=""):
    kernel = siren_arrays(lambda key: get(f"{prefix}kernel.{key}"))
    return [*kernel, get(f"{prefix}mask.std_param"), get(f"{prefix}shortcut")]


GRIDS = {  # the boundary, axes, and extent
    "1d_zero": ("zero", 1, 11.0),
    "1d_circular": ("circular", 1, 5.0),
    "2d_zero": ("zero", 2, 5.0),
    "2d_circular": ("circular", 2, 2.0),
    "3d_zero": ("zero", 3, 3.0),
    "3d_circular": ("circular", 3, 1.0),
}


@cases("ckconv", [name for name in GRIDS if name != "3d_circular"])
def test_ckconv(name):
    data = load(f"nvsubquadratic/ckconv_{name}")
    arrays = lambda prefix: ckconv_arrays(lambda key: data.get(f"{prefix}/{key}"))
    mixer = fill(ckconv(*GRIDS[name]).build(8, KEY), arrays("param"))
    run = lambda mixer, x: jax.vmap(mixer)(x)
    (d_x,) = check(data, run, mixer, (jnp.asarray(data["in/x"]),), arrays)
    assert_close(d_x, data["grad_in/x"], GRADIENT)


HYENAS = {
    "1d_zero": {},
    "1d_circular": {},
    "2d_zero": {},
    "2d_circular": {},
    "2d_linear_gates": {"gate": "identity", "out_gate": "identity"},
    "2d_spatial_recall_v2_style": {"gate_norm": lx.RMSNormConfig()},
    "3d_circular": {},
}


def hyena_arrays(get):
    short = get("mixer.short_conv.weight")
    norms = [get("mixer.pixelhyena_norm.weight"), get("mixer.output_norm.weight")]
    return [
        np.moveaxis(short[:, 0], 0, -1),
        *ckconv_arrays(get, "mixer.global_conv."),
        *(norm for norm in norms if norm is not None),
    ]


@cases("hyena", HYENAS)
def test_hyena(name):
    data = load(f"nvsubquadratic/hyena_{name}")
    convolution = ckconv(*GRIDS[name if name in GRIDS else "2d_zero"])
    # Its short convolution has zeros beyond the edges, even where the long one is circular.
    zero = ("zero",) * len(convolution.boundary)
    config = lx.HyenaOperatorConfig(2, convolution, short_boundary=zero, **HYENAS[name])
    names = ["qkv_proj.weight", "out_proj.weight", "qkv_proj.bias", "out_proj.bias"]
    linear = lambda prefix: [data.get(f"{prefix}/{key}", np.float32(0)) for key in names]
    arrays = lambda prefix: hyena_arrays(lambda key: data.get(f"{prefix}/{key}"))
    operator = fill(config.build(8, KEY), arrays("param"))

    def run(modules, x):
        operator, (w_in, w_out, b_in, b_out) = modules
        streams = jnp.split(x @ w_in.T + b_in, 3, axis=-1)
        return jax.vmap(lambda *streams: operator(streams))(*streams) @ w_out.T + b_out

    expected = lambda prefix: [
        *arrays(prefix),
        *(data.get(f"{prefix}/{key}") for key in names),
    ]
    modules = operator, [jnp.asarray(array) for array in linear("param")]
    (d_x,) = check(data, run, modules, (jnp.asarray(data["in/x"]),), expected)
    assert_close(d_x, data["grad_in/x"], GRADIENT)

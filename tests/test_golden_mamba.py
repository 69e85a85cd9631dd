"""Golden parity of Mamba: the published references' weights give their outputs and gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import as_complex, from_complex
from golden_numbers import assert_close, GOLDEN, KEY, load, run, with_arrays
from oracles.mamba import mamba

import linax_like as lx
from linax_like.ops import selective_scan, selective_step


# The mixer.


def arrays(data, prefix):
    """Our names for the arrays of a file."""
    get = lambda name: data[f"{prefix}/{name}"]
    found = {
        "in_proj": get("in_proj.weight"),
        "short_weight": get("conv1d.weight")[:, 0].T,
        "short_bias": get("conv1d.bias"),
        "select_proj": get("x_proj.weight"),
        "dt_proj": get("dt_proj.weight"),
        "dt_bias": get("dt_proj.bias"),
        "log_decay": get("A_log"),
        "skip": get("D"),
        "out_proj": get("out_proj.weight"),
    }
    if "ts" in data:  # only with timesteps has theirs a use for this parameter
        found["decay_dt_bias"] = get("dtA_proj.bias")
    return found


@eqx.filter_jit
def prefilled(mixer, x, context=None):
    one = lambda x, context: mixer.prefill(mixer.init_state(0, x.dtype), x, context=context)
    return jax.vmap(one)(x, context)


@eqx.filter_jit
def stepped(mixer, state, x, context=None):
    fold = lambda state, x, context: lx.fold(mixer, state, x, context=context)
    return jax.vmap(fold)(state, x, context)


def assert_state(state, short, recurrent, tolerance):
    """Theirs keeps one input of the convolution more than is needed."""
    assert_close(state.short, np.swapaxes(short, 1, 2)[:, 1:], tolerance)
    assert_close(state.recurrent, recurrent, tolerance)


def test_hugging_face():
    data = load("references/mamba1_mixer_hf")
    with jax.enable_x64():
        mixer = lx.MambaSequenceMixerConfig(4, dt_rank=3).build(8, KEY)
        mixer = with_arrays(mixer, **arrays(data, "w"))
        x, ct = jnp.asarray(data["x/x"]), jnp.asarray(data["x/ct"])
        y, d_mixer, d_x = run(mixer, x, lambda y: jnp.sum(y * ct))
        assert_close(y, data["y/out"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        for name, value in arrays(data, "g").items():
            assert_close(getattr(d_mixer, name), value, 1e-9)
        state, _ = prefilled(mixer, x[:, :-4])
        names = ("conv_state", "ssm_state")
        assert_state(state, *(data[f"y/prefix_{name}"] for name in names), 1e-10)
        state, y = stepped(mixer, state, x[:, -4:])
        assert_close(y, data["y/step_out"], 1e-10)
        assert_state(state, *(data[f"y/final_{name}"] for name in names), 1e-10)


MIXERS = sorted(path.stem for path in (GOLDEN / "lrnnx").glob("mamba_*.npz"))
SCANS = sorted(path.stem for path in (GOLDEN / "lrnnx").glob("selscan_complex_*.npz"))


@pytest.mark.parametrize("case", MIXERS)
def test_lrnnx(case):
    data = load(f"lrnnx/{case}")
    name, events = case.split("_")[1], case.endswith("_event")
    if case == "mamba_dirac_event":  # nothing depends on Δ there
        data["g/dt_proj.weight"], data["g/dt_proj.bias"] = np.zeros((16, 1)), np.zeros(16)
    config = lx.MambaSequenceMixerConfig(
        8,
        discretization="euler" if name == "mamba" else name,
        timestep_decay="learned" if events else "scaled",
    )
    mixer = with_arrays(config.build(8, KEY), **arrays(data, "p"))
    x = jnp.asarray(data["x"])
    context = lx.SequenceContext(timesteps=jnp.asarray(data["ts"])) if events else None
    y, d_mixer, d_x = run(mixer, x, lambda y: jnp.mean(y**2), context)
    assert_close(y, data["y"], 1e-5)
    assert_close(d_x, data["dx"], 1e-4)
    for field, value in arrays(data, "g").items():
        assert_close(getattr(d_mixer, field), value, 1e-4)
    state, y = stepped(mixer, jax.vmap(lambda _: mixer.init_state(0))(x), x, context)
    assert_close(y, data["y"], 1e-5)
    if name == "bilinear":  # its steps decay as zoh does, unlike its own parallel form
        assert_close(wrong_steps(mixer, data), data["ystep"], 1e-5)
    else:
        assert_close(y, data["ystep"], 1e-5)
        assert_state(state, data["conv_state"], data["state"], 1e-5)


def wrong_steps(mixer, data):
    """The steps of the reference, where only the gain is bilinear."""
    exact = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if eqx.is_array(leaf) else leaf, mixer
    )
    ys = []
    for i, x in enumerate(np.float64(data["x"])):
        decay_dt = None
        if "ts" in data:
            decay_dt = data["ts"][i][:, None] * np.log1p(np.exp(exact.decay_dt_bias))
        ys.append(mamba(exact, x, decay_dt, decay_method="zoh")[0])
    return np.stack(ys)


# The scan alone, between a softplus, a skip and a gate.


def scan(p, method="euler"):
    """Final states and outputs of a batch; features stand before time there."""
    dt = p["delta"] if "delta_bias" not in p else p["delta"] + p["delta_bias"][:, None]
    dt = jax.nn.softplus(dt) if "delta_bias" in p else dt
    A = p["A"]

    def one(u, dt, B, C, decay_dt):
        decay_dt = None if decay_dt is None else decay_dt.T
        return selective_scan(u.T, dt.T, A, B, C, decay_dt=decay_dt, discretization=method)

    B, C = (over_time(p[name], p["u"].shape) for name in "BC")
    h, y = jax.vmap(one)(p["u"], dt, B, C, p.get("deltaA"))
    y = jnp.swapaxes(y, 1, 2) + p["D"][:, None] * p["u"]
    return h, y * jax.nn.silu(p["z"]) if "z" in p else y


def over_time(z, shape):
    """As our scan takes it: time first, complex numbers in pairs."""
    batch, features, time = shape
    if z.ndim == 2:  # constant, and every feature has its own
        return jnp.broadcast_to(z, (batch, time, *z.shape))
    if z.shape[-1] == 2 * time:
        pairs = z.reshape(*z.shape[:-1], time, 2)
        return from_complex(jnp.moveaxis(pairs[..., 0] + 1j * pairs[..., 1], -1, 1))
    return jnp.moveaxis(z, -1, 1)


@pytest.mark.parametrize("case", ["", "_complex", "_constBC", "_groups"])
def test_selective_scan(case):
    data = load(f"references/mamba1_selective_scan{case}")
    with jax.enable_x64():
        inputs = {
            name[2:]: jnp.asarray(value)
            for name, value in data.items()
            if name.startswith("x/") and "step" not in name
        }
        ct = inputs.pop("ct")
        if case == "_complex":
            inputs["A"] = from_complex(inputs["A"])

        @jax.jit
        def gradient(inputs):
            def loss(inputs):
                h, y = scan(inputs)
                return jnp.sum(y * ct), (h, y)

            return jax.grad(loss, has_aux=True)(inputs)

        grads, (h, y) = gradient(inputs)
        assert_close(y, data["y/out"], 1e-10)
        assert_close(as_complex(h) if case == "_complex" else h, data["y/last_state"], 1e-10)
        for name, got in grads.items():
            got = as_complex(got) if isinstance(got, tuple) else got
            assert_close(got, data[f"g/{name}"], 1e-9)


def test_selective_step():
    data = load("references/mamba1_selective_scan")
    with jax.enable_x64():
        u, dt, B, C, z = (jnp.asarray(data[f"x/step_{name}"]) for name in ("x", "dt", *"BC", "z"))
        dt = jax.nn.softplus(dt + data["x/delta_bias"])
        A = jnp.asarray(data["x/A"])
        step = lambda h, u, dt, B, C: selective_step(h, u, dt, A, B, C)
        h, y = jax.vmap(step)(jnp.asarray(data["y/last_state"]), u, dt, B, C)
        assert_close(h, data["y/step_state"], 1e-10)
        y = (y + data["x/D"] * u) * jax.nn.silu(z)
        assert_close(y, data["y/step_out"], 1e-10)


@pytest.mark.parametrize("name", SCANS)
def test_complex_lrnnx(name):
    data = load(f"lrnnx/{name}")
    inputs = {k: jnp.asarray(v) for k, v in data.items() if k not in ("y", "last_state")}
    inputs["A"] = lx.ops.ComplexPair(inputs["A"][..., 0], inputs["A"][..., 1])
    if not name.endswith("_event"):
        del inputs["deltaA"]
    method = name.split("_")[2].replace("mamba", "euler")
    h, y = jax.jit(scan, static_argnames="method")(inputs, method=method)
    assert_close(y, data["y"], 1e-5)
    assert_close(as_complex(h), data["last_state"] @ [1, 1j], 1e-5)

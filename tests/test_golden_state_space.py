"""Golden parity: the published references' weights and inputs give their outputs and gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from complex_arrays import as_complex
from golden_numbers import (
    assert_close,
    assert_gradients,
    check_lrnnx,
    KEY,
    last_state,
    load,
    lrnnx_s4_output,
    mean_square,
    pair,
    parameters,
    run,
    stepped,
    with_arrays,
)

import linax_like as lx
from linax_like.ops.complex_pair import ComplexPair
from linax_like.ops.hippo import diagonal_legs


# LRU.


def lru_from(data, prefix):
    get = lambda name: data[f"{prefix}/{name}"]
    return {
        "log_decay": get("nu_log"),
        "log_phase": get("theta_log"),
        "log_gain": get("gamma_log"),
        "in_proj": np.stack([get("B_re"), get("B_im")]),
        "out_proj": np.stack([get("C_re"), get("C_im")]),
        "skip": get("D"),
    }


def test_lru_is_the_reference():
    data = load("references/lru")
    with jax.enable_x64():
        mixer = lx.LRUSequenceMixerConfig(state_dim=6).build(5, KEY)
        mixer = with_arrays(mixer, **lru_from(data, "w"))
        x, ct = jnp.asarray(data["x/x"]), jnp.asarray(data["x/ct"])
        y, d_mixer, d_x = run(mixer, x, lambda y: jnp.sum(y * ct))
        assert_close(y, data["y/out"], 1e-10)
        assert_close(last_state(mixer, x), data["y/last_state"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        assert_gradients(d_mixer, lru_from(data, "g"), 1e-9)


def test_lru_is_lrnnx():
    data = load("lrnnx/lru")
    mixer = lx.LRUSequenceMixerConfig(state_dim=8).build(8, KEY)
    mixer = with_arrays(mixer, **lru_from(data, "p"))
    y, d_mixer, d_x = run(mixer, data["x"], mean_square)
    assert_close(y, data["y"], 1e-5)
    assert_close(stepped(mixer, data["x"]), data["ystep"], 1e-5)
    assert_close(last_state(mixer, data["x"]), data["state"] @ [1, 1j], 1e-5)
    assert_close(d_x, data["dx"], 1e-4)
    assert_gradients(d_mixer, lru_from(data, "g"), 1e-4)


# S5.


def s5_from(get, directions=1):
    arrays = {
        "eigenvalues_real": get("Lambda_re"),
        "eigenvalues_imag": get("Lambda_im"),
        "log_step": get("log_step")[:, 0],
        "in_proj": pair(get("B")),
        "skip": get("D"),
    }
    if directions == 1:
        return arrays | {"out_proj": pair(get("C"))}
    try:
        forward, backward = get("C1"), get("C2")
    except KeyError:  # drawn as one matrix for both directions
        forward, backward = np.split(get("C"), 2, axis=1)
    return arrays | {"out_proj": pair(forward), "reverse_out_proj": pair(backward)}


S5_CASES = {
    "zoh_conj": (6, lx.S5SequenceMixerConfig(16, clip_eigs=False)),
    "zoh_noconj_clip": (4, lx.S5SequenceMixerConfig(8, 2, conj_sym=False)),
    "zoh_bidir_rescale": (
        4,
        lx.S5SequenceMixerConfig(16, 2, clip_eigs=False, bidirectional=True, step_rescale=2.0),
    ),
    "bilinear_noconj": (
        5,
        lx.S5SequenceMixerConfig(8, conj_sym=False, clip_eigs=False, discretization="bilinear"),
    ),
    "bilinear_conj_bidir_cn": (
        4,
        lx.S5SequenceMixerConfig(
            12,
            clip_eigs=False,
            C_init="complex_normal",
            discretization="bilinear",
            bidirectional=True,
            step_rescale=0.5,
        ),
    ),
}


@pytest.mark.parametrize("name", S5_CASES)
def test_s5_is_the_reference(name):
    data = load(f"references/s5_ssm_{name}")
    width, config = S5_CASES[name]
    directions = 2 if config.bidirectional else 1
    with jax.enable_x64():
        mixer = config.build(width, KEY)
        mixer = with_arrays(mixer, **s5_from(lambda key: data[f"w/{key}"], directions))
        x, ct = jnp.asarray(data["x/u"]), jnp.asarray(data["x/ct"])
        y, d_mixer, d_x = run(mixer, x, lambda y: jnp.sum(y * ct))
        assert_close(y, data["y/out"], 1e-10)
        assert_close(d_x, data["g/u"], 1e-9)
        assert_gradients(d_mixer, s5_from(lambda key: data[f"g/{key}"], directions), 1e-9)
        if mixer.causal:
            assert_close(last_state(mixer, x), data["y/last_state"], 1e-10)


def test_s5_starts_as_the_reference():
    data = load("references/s5_hippo_init")
    mixer = lx.S5SequenceMixerConfig(16).build(8, KEY)
    kept = data["y/Lambda"][:8]
    assert_close(mixer.eigenvalues_real + 1j * mixer.eigenvalues_imag, kept, 1e-6)
    # B = V* B₀ with a real B₀: hence V B and its conjugate add up to something real.
    full = lx.S5SequenceMixerConfig(16, conj_sym=False).build(8, KEY)
    drawn = diagonal_legs(16).basis @ as_complex(ComplexPair(*full.in_proj))
    assert np.abs(drawn.imag).max() < 1e-5 * np.abs(drawn.real).max()


@pytest.mark.parametrize("activation", ["gelu", "full_glu", "half_glu1", "half_glu2"])
def test_s5_layer_is_the_reference(activation):
    """Norm, mixer, gate and residual around it, as published."""
    data = load(f"references/s5_layer_{activation}")
    prenorm = activation in ("full_glu", "half_glu2")
    with jax.enable_x64():
        mixer = lx.S5SequenceMixerConfig(8, clip_eigs=False).build(6, KEY)
        mixer = with_arrays(mixer, **s5_from(lambda key: data[f"w/seq.{key}"]))
        rest = {
            k[2:]: jnp.asarray(v) for k, v in data.items() if k.startswith("w/") and "seq" not in k
        }
        u, ct = jnp.asarray(data["x/u"]), jnp.asarray(data["x/ct"])

        def norm(x, w):
            centred = x - x.mean(-1, keepdims=True)
            scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
            return centred * scale * w["norm.scale"] + w["norm.bias"]

        def gate(y, w):
            dense = lambda name, x: x @ w[f"{name}.kernel"] + w[f"{name}.bias"]
            active = jax.nn.gelu(y)
            match activation:
                case "gelu":
                    return active
                case "full_glu":
                    return dense("out1", active) * jax.nn.sigmoid(dense("out2", active))
                case "half_glu1":
                    return active * jax.nn.sigmoid(dense("out2", active))
                case "half_glu2":
                    return y * jax.nn.sigmoid(dense("out2", active))

        @eqx.filter_jit
        def layer(mixer, w, u):
            y = u + gate(jax.vmap(mixer)(norm(u, w) if prenorm else u), w)
            return y if prenorm else norm(y, w)

        def loss(inputs):
            y = layer(*inputs)
            return jnp.sum(y * ct), y

        grads, y = eqx.filter_grad(loss, has_aux=True)((mixer, rest, u))
        assert_close(y, data["y/out"], 1e-9)
        assert_gradients(grads[0], s5_from(lambda key: data[f"g/seq.{key}"]), 1e-8)
        for name, value in grads[1].items():
            assert_close(value, data[f"g/{name}"], 1e-8)
        assert_close(grads[2], data["g/u"], 1e-8)


LTV_CASES = {
    "zoh": lx.S5SequenceMixerConfig(8, conj_sym=False, clip_eigs=False),
    "zoh_conj": lx.S5SequenceMixerConfig(16, clip_eigs=False),
    "bilinear": lx.S5SequenceMixerConfig(
        8, conj_sym=False, clip_eigs=False, discretization="bilinear"
    ),
    "bilinear_event": lx.S5SequenceMixerConfig(
        8,
        conj_sym=False,
        clip_eigs=False,
        discretization="bilinear",
        timestep_gain="constant",
    ),
    "dirac_conj": lx.S5SequenceMixerConfig(16, clip_eigs=False, discretization="dirac"),
    "dirac_event": lx.S5SequenceMixerConfig(
        8, conj_sym=False, clip_eigs=False, discretization="dirac", timestep_gain="constant"
    ),
}


@pytest.mark.parametrize("name", LTV_CASES)
def test_s5_is_lrnnx_in_events_and_without(name):
    data = load(f"lrnnx/s5ltv_{name}")
    mixer = LTV_CASES[name].build(8, KEY)

    def arrays(prefix):
        return {
            "eigenvalues_real": data[f"{prefix}/A"][:, 0],
            "eigenvalues_imag": data[f"{prefix}/A"][:, 1],
            "log_step": data[f"{prefix}/log_dt"],
            "in_proj": pair(data[f"{prefix}/B"]),
            "out_proj": pair(data[f"{prefix}/C"]),
            "skip": data[f"{prefix}/D"],
        }

    mixer = with_arrays(mixer, **arrays("p"))
    context = lx.SequenceContext(timesteps=jnp.asarray(data["ts"])) if "ts" in data else None
    y, d_mixer, d_x = run(mixer, data["x"], mean_square, context)
    assert_close(y, data["y"], 1e-5)
    assert_close(stepped(mixer, data["x"], context), data["ystep"], 1e-5)
    assert_close(last_state(mixer, data["x"], context), data["state"] @ [1, 1j], 1e-5)
    assert_close(d_x, data["dx"], 1e-4)
    assert_gradients(d_mixer, arrays("g"), 1e-4)


@pytest.mark.parametrize("discretization", ["zoh", "dirac"])
def test_s5_is_lrnnx_time_invariant(discretization):
    """There B is real, the skip a matrix, and λ = -softplus(a) + iω."""
    data = load(f"lrnnx/s5lti_{discretization}")
    config = lx.S5SequenceMixerConfig(
        8, conj_sym=False, clip_eigs=False, discretization=discretization
    )
    blank = config.build(8, KEY)

    def mixer_from(p):
        return with_arrays(
            blank,
            eigenvalues_real=-jax.nn.softplus(p["A"][:, 0]),
            eigenvalues_imag=p["A"][:, 1],
            log_step=p["log_dt"],
            in_proj=jnp.stack([p["B"], jnp.zeros_like(p["B"])]),
            out_proj=jnp.moveaxis(p["C"], -1, 0),
            skip=jnp.zeros(8),
        )

    check_lrnnx(data, mixer_from, lambda y, x, p: y + x @ p["D"])
    mixer = mixer_from(parameters(data))
    assert_close(last_state(mixer, data["x"]), data["state"] @ [1, 1j], 1e-5)


# S4D.


def s4d_from(get):
    return {
        "log_decay": get("kernel.log_A_real"),
        "frequency": get("kernel.A_imag"),
        "log_step": get("kernel.log_dt"),
        "out_proj": pair(get("kernel.C")),
    }


def test_s4d_is_the_reference():
    """The kernel, the convolution, and the whole layer: GELU, a projection and a GLU after it."""
    data = load("references/s4d_standalone")
    with jax.enable_x64():
        mixer = lx.S4DSequenceMixerConfig(8, transposed=True).build(6, KEY)
        arrays = s4d_from(lambda key: data[f"w/{key}"]) | {"skip": data["w/D"]}
        mixer = with_arrays(mixer, **arrays)
        u, ct, ct_kernel = (jnp.asarray(data[f"x/{name}"]) for name in ("u", "ct", "ct_K"))
        out = [jnp.asarray(data[f"w/output_linear.0.{name}"]) for name in ("weight", "bias")]

        kernel_of = eqx.filter_jit(lambda mixer: mixer.kernel(29, jnp.float64))
        assert_close(kernel_of(mixer), data["y/K"], 1e-10)
        d_mixer = eqx.filter_grad(lambda mixer: jnp.sum(kernel_of(mixer) * ct_kernel))(mixer)
        assert_gradients(d_mixer, s4d_from(lambda key: data[f"g/K__{key}"]), 1e-9)

        def loss(inputs):
            mixer, (weight, bias), u = inputs
            mixed = jax.vmap(mixer)(u)
            active = jax.nn.gelu(mixed, approximate=False)
            value, gate = jnp.split(
                jnp.einsum("oi,bit->bot", weight[..., 0], active) + bias[:, None], 2, 1
            )
            y = value * jax.nn.sigmoid(gate)
            return jnp.sum(y * ct), (mixed, y)

        grad = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))
        (d_mixer, d_out, d_u), (mixed, y) = grad((mixer, out, u))
        assert_close(mixed, data["y/conv_D"], 1e-10)
        assert_close(y, data["y/out"], 1e-10)
        expected = s4d_from(lambda key: data[f"g/{key}"]) | {"skip": data["g/D"]}
        assert_gradients(d_mixer, expected, 1e-9)
        assert_close(d_out[0], data["g/output_linear.0.weight"], 1e-9)
        assert_close(d_out[1], data["g/output_linear.0.bias"], 1e-9)
        assert_close(d_u, data["g/u"], 1e-9)


@pytest.mark.parametrize("name", ["legs_zoh", "legs_bilinear", "lin_zoh"])
def test_s4d_is_lrnnx(name):
    """There B is a parameter, Im λ = -ω, and the layer ends in a projection between GELUs."""
    data = load(f"lrnnx/s4d_{name}")
    discretization = name.split("_")[1]
    blank = lx.S4DSequenceMixerConfig(8, discretization=discretization).build(8, KEY)

    def mixer_from(p):
        (b_real, b_imag), (c_real, c_imag) = (jnp.moveaxis(p[key][0], -1, 0) for key in "BC")
        folded = [b_real * c_real - b_imag * c_imag, b_real * c_imag + b_imag * c_real]
        return with_arrays(
            blank,
            log_decay=p["A_real"],
            frequency=-p["A_imag"],
            log_step=p["inv_dt"][:, 0],
            out_proj=jnp.stack(folded),
            skip=p["D"][0],
        )

    check_lrnnx(data, mixer_from, lrnnx_s4_output)
    # Their state has been through B.
    p = parameters(data)
    state = last_state(mixer_from(p), data["x"]) * (data["p/B"][0] @ [1, 1j])
    assert_close(state, data["state"] @ [1, 1j], 1e-5)

"""Golden parity of the RG-LRU: the weights and inputs of recurrentgemma and of lrnnx."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, assert_gradients, KEY, load, with_arrays

import linax_like as lx
from linax_like.ops import short_conv, short_conv_step


def recurrence(data, prefix):
    """What the reference calls `rg_lru`, under our names."""
    get = lambda name: data[prefix + name]
    arrays = {
        "decay_gate_weight": np.swapaxes(get("a_gate.w"), 1, 2),
        "decay_gate_bias": get("a_gate.b"),
        "input_gate_weight": np.swapaxes(get("input_gate.w"), 1, 2),
        "input_gate_bias": get("input_gate.b"),
        "decay_logit": get("a_param"),
    }
    return arrays | ({"phase": get("a_imag_param")} if prefix + "a_imag_param" in data else {})


def block(data, prefix):
    """The whole recurrent block."""
    get = lambda name: data[prefix + name]
    return recurrence(data, f"{prefix}rg_lru.") | {
        "in_proj": get("linear_x.kernel").T,
        "in_bias": get("linear_x.bias"),
        "gate_proj": get("linear_y.kernel").T,
        "gate_bias": get("linear_y.bias"),
        "short_weight": get("conv_1d.w"),
        "short_bias": get("conv_1d.b"),
        "out_proj": get("linear_out.kernel").T,
        "out_bias": get("linear_out.bias"),
    }


def nothing_around(width, dtype):
    """Parameters with which the block is its recurrence alone: gelu(20) is 20 to the last bit."""
    one = np.eye(width, dtype=dtype)
    zeros = np.zeros(width, dtype)
    return {
        "in_proj": one,
        "in_bias": zeros,
        "gate_proj": 0 * one,
        "gate_bias": zeros + 20,
        "short_weight": one[:1] * 0 + 1,
        "short_bias": zeros,
        "out_proj": one / 20,
        "out_bias": zeros,
    }


def documents(segment_pos):
    """The documents of a batch, in which they begin at position 0; that of the state is 0."""
    zero = jnp.int32(0)
    one = lambda ids: lx.SequenceContext(segment_ids=ids, previous_segment_id=zero)
    return jax.vmap(one)(jnp.cumsum(jnp.asarray(segment_pos) == 0, axis=1, dtype=jnp.int32))


@eqx.filter_jit
def prefill(mixer, state, x, context):
    form = lambda state, x, context: mixer.prefill(state, x, context=context)
    return jax.vmap(form)(state, x, context)


@eqx.filter_jit
def fold(mixer, state, x):
    return jax.vmap(lambda state, x: lx.fold(mixer, state, x))(state, x)


@eqx.filter_jit
@eqx.filter_grad(has_aux=True)
def grad(inputs, context, ct):
    mixer, x, state = inputs
    state, y = prefill(mixer, state, x, context)
    return jnp.sum(y * ct), (state, y)


def in_the_middle(mixer, x, recurrent=None):
    """States within documents, as the references' without a cache are."""
    empty = mixer.init_state(0, x.dtype)
    state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(x), *leaf.shape)), empty)
    state = state._replace(begun=jnp.ones((len(x),), bool))
    return state if recurrent is None else state._replace(recurrent=jnp.asarray(recurrent))


LAYERS = {
    "rg_lru": lx.RGLRUSequenceMixerConfig(num_heads=2, short_width=1),
    "rg_lru_complex": lx.RGLRUSequenceMixerConfig(num_heads=2, states="complex", short_width=1),
    "rg_lru_h0": lx.RGLRUSequenceMixerConfig(num_heads=4, short_width=1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_recurrence_is_the_reference(name):
    data = load(f"references/{name}")
    with jax.enable_x64():
        arrays = recurrence(data, "w/") | nothing_around(8, np.float64)
        mixer = with_arrays(LAYERS[name].build(8, KEY), **arrays)
        x, h0 = jnp.asarray(data["x/x"]), data.get("x/h0")
        context, start = documents(data["x/segment_pos"]), in_the_middle(mixer, x, h0)
        (d_mixer, d_x, d_state), (state, y) = grad((mixer, x, start), context, data["x/ct"])
        assert_close(y, data["y/y"], 1e-10)
        assert_close(state.recurrent, data["y/last_h"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        assert_gradients(d_mixer, recurrence(data, "g/"), 1e-9)
        if h0 is not None:
            assert_close(d_state.recurrent, data["g/h0"], 1e-9)
        if "y/step_y" in data:
            here = documents(data["x/segment_pos"][:, :-3])
            state, _ = prefill(mixer, start, x[:, :-3], here)
            assert_close(state.recurrent, data["y/prefix_h"], 1e-10)
            assert_close(fold(mixer, state, x[:, -3:])[1], data["y/step_y"], 1e-10)


def test_the_convolution_is_the_reference():
    data = load("references/rg_conv1d")
    with jax.enable_x64():
        x, weight, bias = (jnp.asarray(data[key]) for key in ("x/x", "w/w", "w/b"))
        resets = jnp.asarray(data["x/segment_pos"] == 0)
        start = jnp.zeros((3, 6))

        def layer(x, weight, bias):
            form = lambda x, resets: short_conv(x, weight, bias, start, resets=resets)
            return jax.vmap(form)(x, resets[:, : x.shape[1]])

        def loss(inputs):
            state, y = layer(*inputs)
            return jnp.sum(y * data["x/ct"]), (state, y)

        grads, (state, y) = jax.jit(jax.grad(loss, has_aux=True))((x, weight, bias))
        assert_close(y, data["y/y"], 1e-11)
        assert_close(state, data["y/cache"], 1e-11)
        for key, value in zip(("x", "w", "b"), grads, strict=True):
            assert_close(value, data[f"g/{key}"], 1e-10)
        state, _ = layer(x[:, :-3], weight, bias)
        assert_close(state, data["y/prefix_cache"], 1e-11)
        for t in range(3):
            step = lambda x, state: short_conv_step(x, weight, bias, state)
            state, y = jax.vmap(step)(x[:, t - 3], state)
            assert_close(y, data["y/step_y"][:, t], 1e-11)


def test_the_block_is_the_reference():
    data = load("references/rg_recurrent_block")
    with jax.enable_x64():
        config = lx.RGLRUSequenceMixerConfig(lru_width=12, num_heads=2)
        mixer = with_arrays(config.build(8, KEY), **block(data, "w/"))
        x, context = jnp.asarray(data["x/x"]), documents(data["x/segment_pos"])
        start = in_the_middle(mixer, x)
        (d_mixer, d_x, _), (state, y) = grad((mixer, x, start), context, data["x/ct"])
        assert_close(y, data["y/y"], 1e-10)
        assert_close(state.recurrent, data["y/cache_rg_lru"], 1e-10)
        assert_close(state.short, data["y/cache_conv1d"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        assert_gradients(d_mixer, block(data, "g/"), 1e-9)
        here = documents(data["x/segment_pos"][:, :-4])
        state, _ = prefill(mixer, start, x[:, :-4], here)
        assert_close(state.recurrent, data["y/prefix_rg_lru"], 1e-10)
        assert_close(state.short, data["y/prefix_conv1d"], 1e-10)
        assert_close(fold(mixer, state, x[:, -4:])[1], data["y/step_y"], 1e-10)


def mlp(data, prefix, hidden=16):
    """GeGLU with as many hidden features as ours has: those that the reference lacks are 0."""
    fill = lambda x, axis: np.concatenate([x, np.zeros_like(x)], axis)[
        : hidden if not axis else None
    ]
    widen = lambda x: fill(x, 0)
    get = lambda name: data[f"{prefix}{name}"]
    (gate, value), (gate_bias, value_bias) = get("ffw_up.w"), get("ffw_up.b").reshape(2, -1)
    return {
        "gate_weight": widen(gate.T),
        "weight": widen(value.T),
        "gate_bias": widen(gate_bias),
        "bias": widen(value_bias),
        "out_proj": widen(get("ffw_down.kernel")).T,
        "out_bias": get("ffw_down.bias"),
    }


def mlp_with(module, arrays):
    arrays = dict(arrays)
    out = {name: arrays.pop(name) for name in ("out_proj", "out_bias")}
    hidden = with_arrays(module.hidden_layers[0], **arrays)
    return eqx.tree_at(lambda m: m.hidden_layers[0], with_arrays(module, **out), hidden)


def assert_mlp_gradients(got, expected, known=12):
    """Of the hidden features that the reference has."""
    expected = dict(expected)
    assert_close(got.out_bias, expected.pop("out_bias"), 1e-9)
    assert_close(got.out_proj[:, :known], expected.pop("out_proj")[:, :known], 1e-9)
    for name, value in expected.items():
        assert_close(getattr(got.hidden_layers[0], name)[:known], value[:known], 1e-9)


GEGLU = lx.MLPConfig(1, 2.0, "geglu_tanh")
GEGLU_12 = lx.MLPConfig(1, 1.0, "geglu_tanh")  # 16 hidden features for the width 16


def test_the_mlp_is_the_reference():
    data = load("references/rg_geglu_mlp")
    with jax.enable_x64():
        module = mlp_with(GEGLU.build(8, KEY), mlp(data, "w/"))

        @eqx.filter_jit
        @eqx.filter_grad(has_aux=True)
        def grad(inputs):
            module, x = inputs
            y = module(x)
            return jnp.sum(y * data["x/ct"]), y

        (d_module, d_x), y = grad((module, jnp.asarray(data["x/x"])))
        assert_close(y, data["y/y"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        assert_mlp_gradients(d_module, mlp(data, "g/"))


def attention(data, prefix):
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "final": "out_proj"}
    arrays = {ours: data[f"{prefix}proj_{theirs}.kernel"].T for theirs, ours in names.items()}
    return arrays | {"out_bias": data[f"{prefix}proj_final.bias"]}


def local_attention(num_heads, window_size):
    """Theirs sees its own position and as many before it as the window says."""
    return lx.AttentionSequenceMixerConfig(
        num_heads, num_kv_heads=1, window=window_size + 1, rope_fraction=0.5, bias="out"
    )


def start(mixer, x):
    empty = mixer.init_state(x.shape[1], x.dtype)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(x), *leaf.shape)), empty)


LOCAL_ATTENTION = {
    "rg_local_attn": local_attention(2, 7),
    "rg_local_attn_packed": local_attention(4, 9),
}


@pytest.mark.parametrize("name", LOCAL_ATTENTION)
def test_the_local_attention_is_the_reference(name):
    data = load(f"references/{name}")
    with jax.enable_x64():
        mixer = with_arrays(LOCAL_ATTENTION[name].build(16, KEY), **attention(data, "w/"))
        x, context = jnp.asarray(data["x/x"]), documents(data["x/segment_pos"])
        (d_mixer, d_x, _), (_, y) = grad((mixer, x, start(mixer, x)), context, data["x/ct"])
        assert_close(y, data["y/y"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        assert_gradients(d_mixer, attention(data, "g/"), 1e-9)
        if "y/step_y" in data:
            count = data["y/step_y"].shape[1]
            state, _ = prefill(mixer, start(mixer, x), x[:, :-count], None)
            assert_close(fold(mixer, state, x[:, -count:])[1], data["y/step_y"], 1e-10)


RESIDUAL = {
    "recurrent": (lx.RGLRUSequenceMixerConfig(lru_width=12, num_heads=2), block, GEGLU),
    "attention": (local_attention(2, 8), attention, GEGLU_12),
}


@pytest.mark.parametrize("kind", RESIDUAL)
def test_the_residual_block_is_the_reference(kind):
    """Its norms multiply by 1 + scale."""
    data = load(f"references/rg_residual_{kind}")
    mixer_config, arrays, mlp_config = RESIDUAL[kind]
    with jax.enable_x64():
        x, context = jnp.asarray(data["x/x"]), documents(data["x/segment_pos"])
        module = lx.ResidualBlockConfig(mixer_config, mlp_config).build(x.shape[-1], KEY)
        parts = (
            with_arrays(module.sequence_norm, weight=1 + data["w/temporal_pre_norm.scale"]),
            with_arrays(module.sequence_mixer, **arrays(data, f"w/{kind}_block.")),
            with_arrays(module.channel_norm, weight=1 + data["w/channel_pre_norm.scale"]),
            mlp_with(module.channel_mixer, mlp(data, "w/mlp_block.")),
        )
        of = lambda m: (m.sequence_norm, m.sequence_mixer, m.channel_norm, m.channel_mixer)
        module = eqx.tree_at(of, module, parts)
        before = in_the_middle if kind == "recurrent" else start
        state = before(module.sequence_mixer, x)
        (d_module, d_x, _), (_, y) = grad((module, x, state), context, data["x/ct"])
        assert_close(y, data["y/y"], 1e-10)
        assert_close(d_x, data["g/x"], 1e-9)
        d_norm, d_mixer, d_channel_norm, d_mlp = of(d_module)
        assert_close(d_norm.weight, data["g/temporal_pre_norm.scale"], 1e-9)
        assert_close(d_channel_norm.weight, data["g/channel_pre_norm.scale"], 1e-9)
        assert_gradients(d_mixer, arrays(data, f"g/{kind}_block."), 1e-9)
        assert_mlp_gradients(d_mlp, mlp(data, "g/mlp_block."))


def test_lrnnx_in_the_middle_of_a_document():
    """Its gates are dense, which is one block; the exact gelu and the projection are around ours."""
    data = load("lrnnx/rglru")
    p = {k[2:]: jnp.asarray(v) for k, v in data.items() if k.startswith("p/")}
    blank = lx.RGLRUSequenceMixerConfig(num_heads=1).build(8, KEY)

    def mixer_from(p):
        gates = {
            "decay_gate_weight": p["recurrent_gate_proj.weight"][None],
            "decay_gate_bias": p["recurrent_gate_proj.bias"][None],
            "input_gate_weight": p["input_gate_proj.weight"][None],
            "input_gate_bias": p["input_gate_proj.bias"][None],
            "decay_logit": -p["a_log"][:, 0],
        }
        conv = {
            "in_proj": p["in_proj.weight"],
            "short_weight": p["conv1d.weight"][:, 0].T,
            "short_bias": p["conv1d.bias"],
        }
        return with_arrays(blank, **(nothing_around(8, np.float32) | gates | conv))

    def layer(h, x, p):
        gate = jax.nn.gelu(x @ p["gate_proj.weight"].T, approximate=False)
        return (gate * h) @ p["out_proj.weight"].T

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def grad(inputs):
        p, x = inputs
        mixer = mixer_from(p)
        state, h = prefill(mixer, in_the_middle(mixer, x), x, None)
        y = layer(h, x, p)
        return jnp.mean(y**2), (state, y)

    x = jnp.asarray(data["x"])
    (d_p, d_x), (state, y) = grad((p, x))
    assert_close(y, data["y"], 1e-5)
    assert_close(state.recurrent, data["state"][..., 0], 1e-5)
    assert_close(state.short, np.moveaxis(data["conv_state"], 1, 2)[:, -3:], 1e-5)
    mixer = mixer_from(p)
    assert_close(layer(fold(mixer, in_the_middle(mixer, x), x)[1], x, p), data["ystep"], 1e-5)
    assert_close(d_x, data["dx"], 1e-4)
    for name, value in d_p.items():
        assert_close(value, data[f"g/{name}"], 1e-4)


def test_the_decay_starts_as_the_paper_says_not_as_in_lrnnx():
    """There a logarithm goes into a sigmoid, so that the radius r becomes r / (1 + r)."""
    theirs = jax.nn.sigmoid(load("lrnnx/rglru")["p/a_log"])
    assert 0.9 / 1.9 - 1e-6 <= theirs.min()
    assert theirs.max() <= 0.999 / 1.999 + 1e-6
    for states in ("real", "complex"):
        mixer = lx.RGLRUSequenceMixerConfig(states=states).build(1024, KEY)
        radius = np.exp(-jax.nn.softplus(mixer.decay_logit))
        assert 0.9 - 1e-6 <= radius.min() < 0.905
        assert 0.995 < radius.max() <= 0.999 + 1e-6
        # Uniform by area: the median of r² is in the middle of its range.
        assert abs(np.median(radius**2) - (0.9**2 + 0.999**2) / 2) < 0.02

"""The delta rule against a loop in NumPy, in float64, and the published references."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import assert_close, load
from jax import P
from meshes import mesh_of

from linax_like.ops import delta_rule, delta_rule_step


HEADS, GROUPS, KEY, VALUE = 4, 2, 5, 3
CHUNK = 8
NAMES = ("q", "k", "v", "beta", "g")
BACKENDS = ("reference", "xla")
CASES = [(1, True, False), (7, False, False), (16, True, False)]  # time, gated, with rules
CASES += [(29, False, False), (29, False, True), (29, True, True)]


def loop(q, k, v, beta, log_decay, s0, resets=None, mask=None):
    """The definition."""
    s, y = s0, np.zeros_like(v)
    group = np.arange(v.shape[1]) // (v.shape[1] // k.shape[1])
    for t in range(len(v)):
        if mask is None or mask[t]:
            if log_decay is not None:
                s = np.exp(log_decay[t])[:, None, None] * s
            if resets is not None and resets[t]:
                s = np.zeros_like(s)
            key = k[t][group]
            error = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", s, key))
            s = s + key[:, :, None] * error[:, None, :]
            y[t] = np.einsum("hkv,hk->hv", s, q[t][group])
    return s, y


def example(
    time, gated=True, decay=(0.0, 2.0), beta=(0.0, 2.0), heads=HEADS, groups=GROUPS, size=KEY
):
    """Keys of norm 1."""
    rng = np.random.default_rng(0)
    k = rng.standard_normal((time, groups, size))
    return (
        rng.standard_normal((time, groups, size)),
        k / np.linalg.norm(k, axis=-1, keepdims=True),
        rng.standard_normal((time, heads, VALUE)),
        rng.uniform(*beta, (time, heads)),
        -rng.uniform(*decay, (time, heads)) if gated else None,
        rng.standard_normal((heads, size, VALUE)),
    )


def rules(time) -> dict[str, Any]:
    """Documents, and padding between them."""
    rng = np.random.default_rng(0)
    mask = rng.random(time) < 0.7
    return {"resets": mask & (rng.random(time) < 0.2), "mask": mask}


def weights(time):
    rng = np.random.default_rng(7)
    return rng.standard_normal((HEADS, KEY, VALUE)), rng.standard_normal((time, HEADS, VALUE))


def loss_and_results(inputs, weight, **keywords):
    def loss(inputs):
        state, y = delta_rule(*inputs, **keywords)
        mask = keywords.get("mask")
        y = y if mask is None else jnp.where(mask[:, None, None], y, 0)
        return jnp.sum(state * weight[0]) + jnp.sum(y * weight[1]), (state, y)

    return jax.value_and_grad(loss, has_aux=True)(inputs)


run = jax.jit(loss_and_results, static_argnames=("chunk", "backend", "axis_name"))


def as_dtype(dtype, inputs):
    return tuple(None if z is None else jnp.asarray(z, dtype) for z in inputs)


@pytest.mark.parametrize(("time", "gated", "ruled"), CASES)
def test_values_and_gradients(time, gated, ruled):
    """Both backends, plain or with documents and padding."""
    inputs, weight = example(time, gated), weights(time)
    keywords = rules(time) if ruled else {}
    expected = loop(*inputs, **keywords)
    with jax.enable_x64():
        results = [run(inputs, weight, chunk=CHUNK, backend=b, **keywords) for b in BACKENDS]
    for (_, got), _ in results:
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-11)
    grads = [jax.tree.leaves(grad) for _, grad in results]
    for grad, fast in zip(*grads, strict=True):
        np.testing.assert_allclose(fast, grad, rtol=1e-10, atol=1e-10)


def test_the_gradient_by_central_differences():
    """Of the loop, along a random direction of every input."""
    time = 29
    inputs, weight, keywords = example(time), weights(time), rules(time)

    def oracle(*inputs):
        state, y = loop(*inputs, **keywords)
        return np.sum(state * weight[0]) + np.sum(y * weight[1])

    with jax.enable_x64():
        _, grads = run(inputs, weight, chunk=CHUNK, **keywords)
    rng = np.random.default_rng(1)
    for i, grad in enumerate(np.asarray(grad) for grad in grads):
        for _ in range(5):
            step = 1e-5 * rng.standard_normal(grad.shape)
            ahead, behind = (
                oracle(*inputs[:i], inputs[i] + move, *inputs[i + 1 :]) for move in (step, -step)
            )
            np.testing.assert_allclose(np.sum(grad * step), (ahead - behind) / 2, rtol=1e-6)


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_second_derivatives(decay):
    """Of chunks, forward and backward over backward, as of the definition."""
    q, k, v, beta, log_decay, s0 = example(13, groups=HEADS)
    decays = {"none": None, "head": log_decay, "channel": np.stack([log_decay] * KEY, axis=-1)}
    others = (v, beta, decays[decay], s0)

    def along(backend, forward, q, k, *others):
        y = lambda k: delta_rule(q, k, *others, chunk=CHUNK, backend=backend)[1]
        gradient = jax.grad(lambda k: jnp.sum(jnp.sin(y(k))))
        if forward:
            return jax.jvp(gradient, (k,), (q,))[1]
        return jax.grad(lambda k: jnp.sum(gradient(k) * q))(k)

    with jax.enable_x64():
        run = jax.jit(along, static_argnums=(0, 1))
        expected = run("reference", True, q, k, *others)
        for forward in (True, False):
            got = run("xla", forward, q, k, *others)
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["fla_delta_rule", "fla_gated_delta_rule"])
def test_published_recurrences(name):
    """Values, states and gradients, from zero and from a state."""
    data = load(f"references/{name}")
    gated = "x/g" in data
    keys = [key for key in NAMES if gated or key != "g"]
    inputs = {key: data[f"x/{key}"] for key in (*keys, "initial_state")}

    def layer(inputs, start):
        q = inputs["q"] * inputs["q"].shape[-1] ** -0.5
        form = lambda q, k, v, beta, g, s0: delta_rule(q, k, v, beta, g, s0, chunk=CHUNK)
        return jax.vmap(form)(q, *(inputs.get(key) for key in NAMES[1:]), start)

    check_published(data, inputs, layer)


def test_the_published_delta_product():
    """Two positions a token: the decay at the first, the query at the last."""
    data = load("references/fla_gated_delta_product")
    inputs = {key: data[f"x/{key}"] for key in (*NAMES, "initial_state")}

    def layer(inputs, start):
        between = lambda z, place: jnp.stack([z, 0 * z] if place == 0 else [0 * z, z], axis=1)
        joined = lambda z: z.reshape(-1, *z.shape[2:])

        def form(q, k, v, beta, g, s0):
            q, g = joined(between(q, 1)), joined(between(g, 0))
            state, y = delta_rule(q, k, v, beta, g, s0, chunk=CHUNK)
            return state, y[1::2]

        return jax.vmap(form)(*(inputs[key] for key in NAMES), start)

    check_published(data, inputs, layer)


def check_published(data, inputs, layer):
    def loss(inputs):
        state, y = layer(inputs, inputs["initial_state"])
        return jnp.sum(y * data["x/ct"]) + jnp.sum(state * data["x/ct_state"]), (state, y)

    with jax.enable_x64():
        grads, (state, y) = jax.jit(jax.grad(loss, has_aux=True))(inputs)
        from_zero, outputs = jax.jit(layer)(inputs, jnp.zeros_like(state))
    assert_close(y, data["y/o_init"], 1e-10)
    assert_close(state, data["y/final_state_init"], 1e-10)
    assert_close(outputs, data["y/o"], 1e-10)
    assert_close(from_zero, data["y/final_state"], 1e-10)
    for name, grad in grads.items():
        assert_close(grad, data[f"g/{name}"], 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_positions(backend):
    *inputs, s0 = as_dtype(jnp.float32, example(0))
    state, y = delta_rule(*inputs, s0, backend=backend)
    assert y.shape == (0, HEADS, VALUE)
    np.testing.assert_array_equal(state, s0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_may_hold_nan(backend):
    """Nothing of it reaches values or gradients."""
    time, weight = 29, weights(29)
    inputs, keywords = example(time), rules(time)
    mask = keywords["mask"]
    dirty = [np.where(mask.reshape(-1, *(1,) * (z.ndim - 1)), z, np.nan) for z in inputs[:5]]
    with jax.enable_x64():
        got = run((*dirty, inputs[5]), weight, chunk=CHUNK, backend=backend, **keywords)
        expected = run(inputs, weight, chunk=CHUNK, backend=backend, **keywords)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12)
    for grad in got[1][:5]:
        assert not np.asarray(grad)[~mask].any()


@pytest.mark.parametrize("decay", [0.0, 100.0, np.inf, "mixed"])
def test_strong_and_no_decay(decay):
    """Values and gradients in float32, those by the log decay included."""
    time, weight = 50, weights(50)
    *inputs, log_decay, s0 = example(time)
    strong = np.random.default_rng(3).random((time, HEADS)) < 0.3
    log_decay = np.where(strong, -100, log_decay / 50) if decay == "mixed" else 0 * strong - decay
    inputs = as_dtype(np.float32, (*inputs, log_decay, s0))
    got = run(inputs, weight, chunk=16)
    with jax.enable_x64():
        exact = run(as_dtype(np.float64, inputs), weight, chunk=16, backend="reference")
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5 * max(np.abs(e).max(), 1))


def test_gradients_of_a_chunk_that_forgets_at_every_position():
    time, weight = 1200, weights(1200)
    inputs = as_dtype(np.float32, example(time))
    resets = jnp.arange(time) < time - 9
    got, expected = (run(inputs, weight, chunk=chunk, resets=resets)[1] for chunk in (time, 16))
    for g, e in zip(got, expected, strict=True):
        assert_close(g, e, 1e-5)


def test_a_step_that_forgets_has_gradients():
    *rows, _, s0 = as_dtype(np.float32, example(1))
    y = lambda decay: jnp.sum(delta_rule_step(s0, *(z[0] for z in rows), decay)[1])
    for decay in (-1e5, -np.inf):
        assert jax.grad(y)(jnp.full((HEADS,), decay)).tolist() == [0.0] * HEADS


accuracy_run = jax.jit(delta_rule)


@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("kept", [None, 1 - 1e-6, 0.999, 0.5, 1e-6, "mixed"])
def test_accuracy_over_length(kept, beta):
    """Float32 beside the recurrence in float64, over 8,192 positions."""
    time, heads, size = 8192, 2, 16
    inputs = example(time, kept is not None, (0.0, 0.1), (0.0, beta), heads, heads, size)
    *inputs, log_decay, s0 = inputs
    if kept == "mixed":
        strong = np.random.default_rng(3).random((time, heads)) < 0.02
        log_decay = np.where(strong, -1000, log_decay)
    elif kept is not None:
        log_decay = np.full((time, heads), np.log(kept))
    inputs = as_dtype(np.float32, (*inputs, log_decay, s0))
    exact = loop(*(None if z is None else np.asarray(z, np.float64) for z in inputs))
    for got, e in zip(accuracy_run(*inputs), exact, strict=True):
        assert_close(got, e, 1e-5)


def test_bfloat16_accumulates_in_float32():
    """The error is that of a few roundings, however many terms there are."""
    inputs = as_dtype(jnp.bfloat16, example(256, decay=(0.0, 0.02), beta=(0.0, 1.0)))
    exact = loop(*(np.asarray(z, np.float64) for z in inputs))
    (_, (state, y)), grads = run(inputs, as_dtype(jnp.float32, weights(256)), chunk=64)
    assert state.dtype == jnp.float32
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in grads] == [z.dtype for z in inputs]
    # An accelerator rounds the operands of its products.
    assert_close(
        np.asarray(state, np.float64), exact[0], 1e-5 if jax.default_backend() == "cpu" else 8e-3
    )
    assert_close(np.asarray(y, np.float64), exact[1], 8e-3)


def test_accelerators_compute_the_same():
    """All chunks at once, with and without operands in bfloat16, compiled here for the CPU."""
    time, weight = 29, weights(29)
    keywords = {name: jnp.asarray(rule) for name, rule in rules(time).items()}
    half = as_dtype(jnp.bfloat16, example(time))
    with jax.enable_x64(), pytest.MonkeyPatch.context() as patch:
        expected = run(example(time), weight, chunk=CHUNK, **keywords)
        choose = lambda *operands, cpu, default: default(*operands)
        patch.setattr(jax.lax, "platform_dependent", choose)
        run_anew = jax.jit(lambda *args, **kw: loss_and_results(*args, chunk=CHUNK, **kw))
        got = run_anew(example(time), weight, **keywords)
        rough = run_anew(half, weight, **keywords)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-10, atol=1e-10)
    for g, e in zip(jax.tree.leaves(rough[1]), jax.tree.leaves(expected[1]), strict=True):
        assert_close(np.asarray(g, np.float64), e, 0.05)


@pytest.mark.parametrize("gated", [False, True])
def test_time_over_devices(gated):
    """Values and gradients, with documents, padding and an initial state."""
    time = 32
    inputs = as_dtype(jnp.float32, example(time, gated, (0.0, 0.3)))
    weight = as_dtype(jnp.float32, weights(time))
    mesh = mesh_of(4, "time")
    rule = {name: jnp.asarray(rule) for name, rule in rules(time).items()} if gated else {}

    def split(*inputs):
        def local(inputs, s0, rule):
            state, y = delta_rule(*inputs, s0, **rule, axis_name="time", chunk=3)
            return state[None], y

        specs = (P("time"), P(), P("time"))
        over = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))
        return over(inputs[:-1], inputs[-1], rule)

    def whole(*inputs):
        state, y = delta_rule(*inputs, **rule, chunk=CHUNK)
        return jnp.repeat(state[None], 4, 0), y

    def loss(form, inputs):
        states, y = form(*inputs)
        y = jnp.where(rule["mask"][:, None, None], y, 0) if rule else y
        return jnp.sum(states.mean(0) * weight[0]) + jnp.sum(y * weight[1]), (states, y)

    both = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    got, expected = both(split, inputs), both(whole, inputs)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


def test_forward_mode_needs_the_reference():
    *inputs, _, _ = as_dtype(jnp.float32, example(9))
    q, rest = inputs[0], inputs[1:]
    f = lambda q, backend: delta_rule(q, *rest, backend=backend)[1]
    _, tangent = jax.jvp(lambda q: f(q, "reference"), (q,), (q,))
    np.testing.assert_allclose(tangent, f(q, None), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: f(q, "xla"), (q,), (q,))


def test_the_gradient_stores_the_inputs_and_a_state_per_chunk():
    time, chunk = 1024, 64
    inputs = as_dtype(jnp.float32, example(time, heads=GROUPS))
    _, pullback = jax.vjp(lambda *inputs: delta_rule(*inputs, chunk=chunk), *inputs)
    stored = sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))
    given = sum(z.size for z in inputs)
    assert stored <= given + time // chunk * GROUPS * KEY * VALUE + 4 * time * GROUPS


def test_memory_of_the_compiled_gradient():
    """On a CPU a few arrays of the size of the inputs, without scores or states of every position."""
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator computes all chunks at once")
    time, heads, size = 4096, 4, 32
    shapes = ((time, heads, size),) * 3 + ((time, heads),) * 2
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    loss = lambda *inputs: jnp.sum(delta_rule(*inputs)[1] ** 2)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*inputs).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 10 * (4 * time * heads * size)


def test_groups_that_do_not_divide_the_heads_are_an_error():
    inputs = as_dtype(jnp.float32, example(4, groups=1))
    q, k = (jnp.repeat(z, 3, axis=1) for z in inputs[:2])
    with pytest.raises(ValueError, match="divide the heads. Received 4 heads and 3 groups"):
        delta_rule(q, k, *inputs[2:])

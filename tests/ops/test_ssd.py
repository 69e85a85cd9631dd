"""State space duality against a loop in NumPy, in float64, and the published reference."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from meshes import mesh_of

from linax_like.ops import ssd


HEADS, HEAD, GROUPS, STATE = 4, 3, 2, 5
CHUNK = 8
CASES = [(time, option) for time in (1, 7, 8, 24) for option in ("plain", "all")]
CASES += [(13, option) for option in ("plain", "resets", "mask", "all")]
BACKENDS = ("reference", "xla")
GOLDEN = Path(__file__).parents[1] / "golden" / "references" / "mamba2_ssd.npz"


def loop(x, log_decay, b, c, h0, resets=None, mask=None):
    """The definition."""
    h, y = h0, np.zeros_like(x)
    group = np.arange(x.shape[1]) // (x.shape[1] // b.shape[1])
    for t in range(len(x)):
        if mask is None or mask[t]:
            kept = 0.0 if resets is not None and resets[t] else np.exp(log_decay[t])[:, None, None]
            h = kept * h + x[t][:, :, None] * b[t][group][:, None, :]
            y[t] = np.einsum("hpn,hn->hp", h, c[t][group])
    return h, y


def example(time, decay=(0.0, 2.0), seed=0, heads=HEADS, groups=GROUPS):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((time, heads, HEAD)),
        -rng.uniform(*decay, (time, heads)),
        rng.standard_normal((time, groups, STATE)),
        rng.standard_normal((time, groups, STATE)),
        rng.standard_normal((heads, HEAD, STATE)),
    )


def rules(time, option, seed=0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    resets, mask = rng.random(time) < 0.2, rng.random(time) < 0.7
    return {
        "plain": {},
        "resets": {"resets": resets},
        "mask": {"mask": mask},
        "all": {"resets": resets & mask, "mask": mask},
    }[option]


def weights(time, seed=7):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((HEADS, HEAD, STATE)), rng.standard_normal((time, HEADS, HEAD))


def loss_and_results(inputs, weight, **keywords):
    def loss(inputs):
        state, y = ssd(*inputs, **keywords)
        mask = keywords.get("mask")
        y = y if mask is None else jnp.where(mask[:, None, None], y, 0)
        return jnp.sum(state * weight[0]) + jnp.sum(y * weight[1]), (state, y)

    return jax.value_and_grad(loss, has_aux=True)(inputs)


run = jax.jit(loss_and_results, static_argnames=("chunk", "backend", "axis_name"))


def differences(f, inputs, i, step=1e-5):
    """Central differences of a function by one input."""
    grad = np.zeros_like(inputs[i])
    for index in np.ndindex(grad.shape):
        values = []
        for sign in (1, -1):
            moved = inputs[i].copy()
            moved[index] += sign * step
            values.append(f(*inputs[:i], moved, *inputs[i + 1 :]))
        grad[index] = (values[0] - values[1]) / (2 * step)
    return grad


@pytest.mark.parametrize(("time", "option"), CASES)
def test_values_and_gradients(time, option):
    """Both backends; the reference's gradient by central differences of the loop."""
    inputs, weight, keywords = example(time), weights(time), rules(time, option)
    expected = loop(*inputs, **keywords)
    with jax.enable_x64():
        results = [run(inputs, weight, chunk=CHUNK, backend=k, **keywords) for k in BACKENDS]
        for (_, got), _ in results:
            for g, e in zip(got, expected, strict=True):
                np.testing.assert_allclose(g, e, rtol=1e-11, atol=1e-11)
        for grad, fast in zip(results[0][1], results[1][1], strict=True):
            np.testing.assert_allclose(fast, grad, rtol=1e-10, atol=1e-10)
    if time == 13:

        def oracle(*inputs):
            state, y = loop(*inputs, **keywords)
            return np.sum(state * weight[0]) + np.sum(y * weight[1])

        for i, grad in enumerate(results[0][1]):
            np.testing.assert_allclose(grad, differences(oracle, inputs, i), rtol=1e-6, atol=1e-7)


def test_the_published_reference():
    """Values and gradients, with the reference's chunks, others, segments and a skip."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files if key != "meta"}
    with jax.enable_x64():
        x, dt, a, b, c, h0 = (data[f"x/{k}"] for k in ("x", "dt", "A", "B", "C", "initial_state"))

        def layer(x, dt, a, b, c, h0, resets=None, chunk=6):
            form = lambda x, dt, b, c, h0, resets: ssd(
                x * dt[..., None], dt * a, b, c, h0, resets=resets, chunk=chunk
            )
            return jax.vmap(form)(x, dt, b, c, h0, resets)

        def loss(inputs):
            state, y = layer(*inputs)
            return jnp.sum(y * data["x/ct"]) + jnp.sum(state * data["x/ct_state"]), (state, y)

        inputs = (x, dt, a, b, c, h0)
        grads, (state, y) = jax.jit(jax.grad(loss, has_aux=True))(inputs)
        assert_close(y, data["y/out_init"], 1e-10)
        assert_close(state, data["y/final_state_init"], 1e-10)
        for name, grad in zip(("x", "dt", "A", "B", "C", "initial_state"), grads, strict=True):
            assert_close(grad, data[f"g/{name}"], 1e-9)
        state, y = layer(x, dt, a, b, c, np.zeros_like(h0))
        assert_close(y, data["y/out"], 1e-10)
        assert_close(state, data["y/final_state"], 1e-10)
        state, y = layer(*inputs, chunk=8)
        assert_close(y + data["x/D"][:, None] * x, data["y/chunk_out"], 1e-10)
        assert_close(state, data["y/chunk_final_state"], 1e-10)
        ids = data["x/seq_idx"]
        resets = np.diff(ids, prepend=ids[:, :1]) != 0
        state, y = layer(*inputs, resets)
        assert_close(y, data["y/seg_out"], 1e-10)
        assert_close(state, data["y/seg_final_state"], 1e-10)


def assert_close(got, expected, tolerance):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_positions(backend):
    *inputs, h0 = (jnp.asarray(z, jnp.float32) for z in example(0))
    state, y = ssd(*inputs, h0, backend=backend)
    assert y.shape == (0, HEADS, HEAD)
    np.testing.assert_array_equal(state, h0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_may_hold_nan(backend):
    """Nothing of it reaches values or gradients."""
    time, weight = 13, weights(13)
    inputs, keywords = example(time), rules(time, "all")
    mask = keywords["mask"]
    dirty = [np.where(mask.reshape(-1, *(1,) * (z.ndim - 1)), z, np.nan) for z in inputs[:4]]
    with jax.enable_x64():
        got = run((*dirty, inputs[4]), weight, chunk=4, backend=backend, **keywords)
        expected = run(inputs, weight, chunk=4, backend=backend, **keywords)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-12, atol=1e-12)
    for grad in got[1][:4]:
        assert not np.asarray(grad)[~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 100.0, np.inf, "mixed"])
def test_strong_and_no_decay(decay, backend):
    """Values and gradients in float32, those by the log decay included."""
    time, weight = 50, weights(50)
    x, log_decay, b, c, h0 = example(time)
    strong = np.random.default_rng(3).random((time, HEADS)) < 0.3
    log_decay = np.where(strong, -100, log_decay / 50) if decay == "mixed" else 0 * strong - decay
    inputs = tuple(np.float32(z) for z in (x, log_decay, b, c, h0))
    got = run(inputs, weight, chunk=16, backend=backend)
    with jax.enable_x64():
        inputs = tuple(np.float64(z) for z in inputs)
        exact = run(inputs, weight, chunk=16, backend="reference")
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5 * max(np.abs(e).max(), 1))


def test_a_chunk_may_forget_at_every_position():
    time = 1200
    inputs = tuple(np.float32(z) for z in example(time, (0.0, 0.05)))
    resets = np.arange(time) < time - 9
    exact = loop(*(np.float64(z) for z in inputs), resets=resets)
    for got, e in zip(
        jax.jit(partial(ssd, chunk=time))(*inputs, resets=resets), exact, strict=True
    ):
        assert_close(got, e, 1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_accuracy_does_not_depend_on_the_length(scale):
    """Float32 beside a recurrence in float64, over lengths up to 65,536, strong decays in between."""
    inputs = example(65_536, (0.0, scale), heads=2, groups=1)
    strong = np.random.default_rng(3).random(inputs[1].shape) < 0.02
    inputs = (inputs[0], np.where(strong, -1000, inputs[1]), *inputs[2:])
    inputs = tuple(np.float32(z) for z in inputs)
    h, y = loop(*(np.float64(z) for z in inputs))
    state, got = jax.jit(ssd)(*inputs)
    error, largest = np.abs(np.asarray(got) - y), np.abs(y).max()
    assert error.max() <= 1e-5 * largest
    assert error[-1024:].max() <= 2 * max(error[:1024].max(), 1e-7 * largest)
    np.testing.assert_allclose(state, h, rtol=1e-5, atol=1e-5 * np.abs(h).max())


def test_bfloat16_accumulates_in_float32():
    """The error is that of a few roundings, however many terms there are."""
    inputs = [jnp.asarray(z, jnp.bfloat16) for z in example(256, (0.0, 0.02))]
    exact = loop(*(np.asarray(z, np.float64) for z in inputs))
    weight = [jnp.asarray(z, jnp.float32) for z in weights(256)]
    (_, (state, y)), grads = run(tuple(inputs), weight, chunk=64)
    assert state.dtype == jnp.float32
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in grads] == [z.dtype for z in inputs]
    assert_close(state, exact[0], 4e-3)
    assert_close(y, exact[1], 8e-3)


def test_accelerators_compute_the_same():
    """All chunks at once, with and without operands in bfloat16, compiled here for the CPU."""
    from linax_like.ops.ssd import xla

    def over_chunks(advance, state, inputs, reverse=False):
        return advance(state, inputs)

    time, weight = 29, weights(29)
    keywords = {name: jnp.asarray(rule) for name, rule in rules(time, "all").items()}
    with jax.enable_x64(), pytest.MonkeyPatch.context() as patch:
        expected = run(example(time), weight, chunk=CHUNK, **keywords)
        patch.setattr(xla, "_over_chunks", over_chunks)
        run_anew = jax.jit(lambda *args, **kw: loss_and_results(*args, chunk=CHUNK, **kw))
        got = run_anew(example(time), weight, **keywords)
        half = tuple(jnp.asarray(z, jnp.bfloat16) for z in example(time))
        rough = run_anew(half, weight, **keywords)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-10, atol=1e-10)
    for g, e in zip(jax.tree.leaves(rough[1]), jax.tree.leaves(expected[1]), strict=True):
        assert_close(g, e, 0.05)


def test_time_over_devices():
    """Values and gradients, with documents, padding and an initial state."""
    time = 32
    inputs = tuple(jnp.asarray(z, jnp.float32) for z in example(time, (0.0, 0.3)))
    weight = tuple(jnp.asarray(z, jnp.float32) for z in weights(time))
    rng = np.random.default_rng(1)
    mask = jnp.asarray(rng.random(time) < 0.8)
    resets = mask & jnp.asarray(rng.random(time) < 0.06)
    mesh = mesh_of(4, "time")

    def split(*inputs):
        def local(x, log_decay, b, c, h0, resets, mask):
            keywords: Any = dict(resets=resets, mask=mask, axis_name="time", chunk=3)
            state, y = ssd(x, log_decay, b, c, h0, **keywords)
            return state[None], y

        rows = (P("time"),) * 4
        specs = (*rows, P(), P("time"), P("time"))
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))
        states, y = run(*inputs, resets, mask)
        return states, y

    def whole(*inputs):
        state, y = ssd(*inputs, resets=resets, mask=mask)
        return jnp.repeat(state[None], 4, 0), y

    def loss(form, inputs):
        states, y = form(*inputs)
        y = jnp.where(mask[:, None, None], y, 0)
        return jnp.sum(states.mean(0) * weight[0]) + jnp.sum(y * weight[1]), (states, y)

    run = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    got, expected = run(split, inputs), run(whole, inputs)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


def test_forward_mode_needs_the_reference():
    x, *rest = (jnp.asarray(z, jnp.float32) for z in example(9))
    f = lambda x, backend: ssd(x, *rest[:3], backend=backend)[1]
    _, tangent = jax.jvp(lambda x: f(x, "reference"), (x,), (x,))
    np.testing.assert_allclose(tangent, f(x, None), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: f(x, "xla"), (x,), (x,))


def test_the_gradient_stores_the_inputs_and_a_state_per_chunk():
    time, chunk = 1024, 64
    inputs = tuple(jnp.asarray(z, jnp.float32) for z in example(time))
    _, pullback = jax.vjp(lambda *inputs: ssd(*inputs, chunk=chunk), *inputs)
    stored = sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))
    given = sum(z.size for z in inputs)
    assert stored <= given + time // chunk * HEADS * HEAD * STATE + 4 * time * HEADS


def test_memory_of_the_compiled_gradient():
    """On a CPU a few arrays of the size of the inputs, without scores or states of every position."""
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator computes all chunks at once")
    time, heads, size = 4096, 4, 32
    shapes = ((time, heads, size), (time, heads), (time, 1, size), (time, 1, size))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    loss = lambda *inputs: jnp.sum(ssd(*inputs)[1] ** 2)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*inputs).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes <= 6 * (4 * time * heads * size)


def test_groups_that_do_not_divide_the_heads_are_an_error():
    inputs = example(4, heads=4, groups=3)
    with pytest.raises(ValueError, match="divide the heads. Received 4 heads and 3 groups"):
        ssd(*(jnp.asarray(z, jnp.float32) for z in inputs))

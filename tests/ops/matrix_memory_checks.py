"""What holds for every recurrence of a matrix that remembers values by keys.

The definition is a loop in NumPy, in float64; what is fast is compared with it, or with the
reference backend, whose gradient is compared with central differences of the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from meshes import mesh_of


HEADS, KEY, VALUE, CHUNK = 4, 5, 3, 4
BACKENDS = ("reference", "xla")
# Lengths of one position, less than a chunk, a prime with a last chunk that is not full, and full
# chunks. Documents and padding are arrays, so that a length has one program for all of them.
CASES = [(1, "all"), (3, "all"), (13, "plain"), (8, "all")]
CASES += [(13, option) for option in ("resets", "mask", "all")]
DECAYS = {"1 - 1e-6": 1 - 1e-6, "0.999": 0.999, "0.5": 0.5, "1e-6": 1e-6}


@dataclass(frozen=True)
class Recurrence:
    """An op, and how to try it.

    - `loop`: the definition, of the op's inputs, `resets` and `mask`.
    - `inputs`: `inputs(rng, time, heads, log_decay)`, all of the op's but the state, whose matrix
        stays bounded without decay; the log decay is the last.
    """

    op: Callable
    loop: Callable
    inputs: Callable[..., tuple[np.ndarray, ...]]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def example(case: Recurrence, time: int, decay: float = 2.0, seed: int = 0) -> tuple:
    """The op's inputs, whose log decays are down to `-decay`."""
    rng = np.random.default_rng(seed)
    log_decay = -rng.uniform(0, decay, (time, HEADS, KEY))
    inputs = case.inputs(rng, time, HEADS, log_decay)
    return *inputs, rng.standard_normal((HEADS, KEY, VALUE))


def rules(time, option, seed=1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    resets, mask = rng.random(time) < 0.2, rng.random(time) < 0.7
    none, every = np.zeros(time, bool), np.ones(time, bool)
    return {
        "plain": {},
        "resets": {"resets": resets, "mask": every},
        "mask": {"resets": none, "mask": mask},
        "all": {"resets": resets & mask, "mask": mask},
    }[option]


def weights(time, seed=7):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((HEADS, KEY, VALUE)), rng.standard_normal((time, HEADS, VALUE))


def loss_and_results(op, inputs, weight, **keywords):
    def loss(inputs):
        state, y = op(*inputs, **keywords)
        mask = keywords.get("mask")
        y = y if mask is None else jnp.where(mask[:, None, None], y, 0)
        return jnp.sum(state * weight[0]) + jnp.sum(y * weight[1]), (state, y)

    return jax.value_and_grad(loss, has_aux=True)(inputs)


run = jax.jit(loss_and_results, static_argnames=("op", "chunk", "backend"))


def masked(y, mask=None, **_):
    """Outputs at padding mean nothing."""
    return np.asarray(y) if mask is None else np.where(mask[:, None, None], y, 0)


def assert_close(got, expected, tolerance):
    """Relative to the largest entry."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


def assert_all_close(got, expected, tolerance):
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance)


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


def check_values_and_gradients(case: Recurrence, time: int, option: str):
    """Both backends; the reference's gradient by central differences of the loop."""
    inputs, weight, keywords = example(case, time), weights(time), rules(time, option)
    state, y = case.loop(*inputs, **keywords)
    with jax.enable_x64():
        results = [
            run(case.op, inputs, weight, chunk=CHUNK, backend=backend, **keywords)
            for backend in BACKENDS
        ]
    for (_, (got_state, got_y)), _ in results:
        assert_all_close((got_state, masked(got_y, **keywords)), (state, y), 1e-11)
    assert_all_close(results[1][1], results[0][1], 1e-10)
    if (time, option) == (13, "all"):

        def oracle(*inputs):
            state, y = case.loop(*inputs, **keywords)
            return np.sum(state * weight[0]) + np.sum(y * weight[1])

        for i, grad in enumerate(results[0][1]):
            np.testing.assert_allclose(grad, differences(oracle, inputs, i), rtol=1e-6, atol=1e-7)


def check_no_positions(case: Recurrence):
    *inputs, s0 = (jnp.asarray(z, jnp.float32) for z in example(case, 0))
    for backend in BACKENDS:
        state, y = case.op(*inputs, s0, backend=backend)
        assert y.shape == (0, HEADS, VALUE)
        np.testing.assert_array_equal(state, s0)


def check_padding_may_hold_nan(case: Recurrence):
    """Nothing of it reaches values or gradients."""
    time = 13
    *inputs, s0 = example(case, time)
    weight, keywords = weights(time), rules(time, "all")
    mask = keywords["mask"]
    dirty = [np.where(mask.reshape(-1, *(1,) * (z.ndim - 1)), z, np.nan) for z in inputs]
    with jax.enable_x64():
        for backend in BACKENDS:
            how = dict(chunk=CHUNK, backend=backend, **keywords)
            (_, (state, y)), grads = run(case.op, (*dirty, s0), weight, **how)
            (_, (clean_state, clean_y)), clean = run(case.op, (*inputs, s0), weight, **how)
            assert_all_close((state, masked(y, mask)), (clean_state, masked(clean_y, mask)), 1e-12)
            assert_all_close(grads, clean, 1e-12)
            assert not any(np.asarray(grad)[~mask].any() for grad in grads[:-1])


def check_strong_and_no_decay(case: Recurrence):
    """Values and gradients in float32, those by the log decay included."""
    time = 50
    weight = tuple(np.float32(z) for z in weights(time))
    rng = np.random.default_rng(3)
    weak = -rng.uniform(0, 0.04, (time, HEADS, KEY))
    strong = np.where(rng.random(weak.shape) < 0.3, -100, weak)
    for log_decay in (0 * weak, 0 * weak - 100, 0 * weak - np.inf, strong):
        inputs = case.inputs(np.random.default_rng(0), time, HEADS, log_decay)
        s0 = np.random.default_rng(1).standard_normal((HEADS, KEY, VALUE))
        inputs = tuple(np.float32(z) for z in (*inputs, s0))
        got = run(case.op, inputs, weight, chunk=8, backend="xla")
        with jax.enable_x64():
            inputs, exact_weight = (
                tuple(np.float64(z) for z in arrays) for arrays in (inputs, weight)
            )
            exact = run(case.op, inputs, exact_weight, chunk=8, backend="reference")
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-5 * max(np.abs(e).max(), 1))


def check_accuracy(case: Recurrence, time=8192):
    """Float32 beside a recurrence in float64: one kind of decay a head, the last with all of them."""
    rng = np.random.default_rng(0)
    kinds = np.log(list(DECAYS.values()))
    mixed = rng.choice([*kinds, -2000.0], (time, 1, 16), p=[0.3, 0.4, 0.24, 0.05, 0.01])
    same = np.broadcast_to(kinds[:, None], (time, len(kinds), 16))
    log_decay = np.concatenate([same, mixed], axis=1)
    heads = log_decay.shape[1]
    inputs = case.inputs(rng, time, heads, log_decay)
    s0 = rng.standard_normal((heads, log_decay.shape[2], inputs[2].shape[2]))
    inputs = tuple(np.float32(z) for z in (*inputs, s0))
    expected = case.loop(*(np.float64(z) for z in inputs))
    got = jax.jit(case.op)(*inputs)
    names = (*DECAYS, "mixed")
    for what, g, e, axes in zip(("state", "y"), got, expected, ((1, 2), (0, 2)), strict=True):
        error = np.abs(np.asarray(g) - e).max(axes) / np.abs(e).max(axes)
        assert error.max() <= 1e-5, (what, dict(zip(names, error, strict=True)))


def check_bfloat16(case: Recurrence):
    """The error is that of a few roundings, however many terms there are."""
    inputs = [jnp.asarray(z, jnp.bfloat16) for z in example(case, 256, 0.02)]
    state, y = case.loop(*(np.asarray(z, np.float64) for z in inputs))
    weight = [jnp.asarray(z, jnp.float32) for z in weights(256)]
    (_, (got_state, got_y)), grads = run(case.op, tuple(inputs), weight, chunk=8)
    assert got_state.dtype == jnp.float32
    assert got_y.dtype == jnp.bfloat16
    assert [g.dtype for g in grads] == [z.dtype for z in inputs]
    # An accelerator rounds the operands of its products.
    assert_close(got_state, state, 1e-5 if jax.default_backend() == "cpu" else 8e-3)
    assert_close(got_y, y, 8e-3)


def check_accelerators_compute_the_same(case: Recurrence):
    """All chunks at once, with and without operands in bfloat16, compiled here for the CPU."""

    def at_once(*operands, default, **_):
        return default(*operands)

    inputs, weight = example(case, 13), weights(13)
    keywords = {name: jnp.asarray(rule) for name, rule in rules(13, "all").items()}
    with jax.enable_x64(), pytest.MonkeyPatch.context() as patch:
        expected = run(case.op, inputs, weight, chunk=CHUNK, backend="xla", **keywords)
        patch.setattr(jax.lax, "platform_dependent", at_once)
        run_anew = jax.jit(lambda *args: loss_and_results(case.op, *args, chunk=CHUNK, **keywords))
        got = run_anew(inputs, weight)
        rough = run_anew(tuple(jnp.asarray(z, jnp.bfloat16) for z in inputs), weight)
    assert_all_close(got, expected, 1e-10)
    for g, e in zip(jax.tree.leaves(rough[1]), jax.tree.leaves(expected[1]), strict=True):
        assert_close(g, e, 0.05)


def check_time_over_devices(case: Recurrence):
    """Values and gradients, with documents, padding and an initial state."""
    time = 32
    inputs = tuple(jnp.asarray(z, jnp.float32) for z in example(case, time, 0.3))
    weight = tuple(jnp.asarray(z, jnp.float32) for z in weights(time))
    rng = np.random.default_rng(1)
    mask = jnp.asarray(rng.random(time) < 0.8)
    resets = mask & jnp.asarray(rng.random(time) < 0.06)
    mesh = mesh_of(4, "time")

    def split(*inputs):
        def local(resets, mask, *inputs):
            keywords: Any = dict(resets=resets, mask=mask, axis_name="time", chunk=4)
            state, y = case.op(*inputs, **keywords)
            return state[None], y

        specs = (*(P("time"),) * (len(inputs) + 1), P())
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))
        return run(resets, mask, *inputs)

    def whole(*inputs):
        state, y = case.op(*inputs, resets=resets, mask=mask, backend="reference")
        return jnp.repeat(state[None], 4, 0), y

    def loss(form, inputs):
        states, y = form(*inputs)
        y = jnp.where(mask[:, None, None], y, 0)
        return jnp.sum(states.mean(0) * weight[0]) + jnp.sum(y * weight[1]), (states, y)

    run = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True), static_argnums=0)
    (_, (states, y)), grads = run(split, inputs)
    (_, (all_states, all_y)), all_grads = run(whole, inputs)
    got, expected = (states, masked(y, mask), grads), (all_states, masked(all_y, mask), all_grads)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)


def check_forward_mode_needs_the_reference(case: Recurrence):
    q, *rest = (jnp.asarray(z, jnp.float32) for z in example(case, 9))
    f = lambda q, backend: case.op(q, *rest, backend=backend)[1]
    _, tangent = jax.jvp(lambda q: f(q, "reference"), (q,), (q,))
    np.testing.assert_allclose(tangent, f(q, "reference"), rtol=1e-5, atol=1e-5)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: f(q, "xla"), (q,), (q,))


def check_what_the_gradient_stores(case: Recurrence):
    """The inputs, q and k for every head, a state for every chunk, and the log decay once more."""
    time = 1024
    inputs = tuple(jnp.asarray(z, jnp.float32) for z in example(case, time))
    _, pullback = jax.vjp(lambda *inputs: case.op(*inputs, chunk=64), *inputs)
    stored = sum(leaf.size for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size"))
    given = sum(time * HEADS * (KEY if z.shape[-1] == KEY else z[0, 0].size) for z in inputs[:-1])
    states = time // 64 * HEADS * KEY * VALUE
    assert stored <= given + states + time * HEADS * KEY + 64


def golden(name):
    path = Path(__file__).parents[1] / "golden" / "references" / f"{name}.npz"
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key != "meta"}


def check_golden(data, form, names, transpose_state=False):
    """Outputs, states and gradients, from a state of zero and from the reference's.

    - `form`: the op of one example, of the reference's inputs by `names` and the state.
    - `transpose_state`: the reference's matrix is (value, key).
    """
    turn = (lambda z: np.swapaxes(z, -1, -2)) if transpose_state else (lambda z: z)
    with jax.enable_x64():
        inputs = tuple(jnp.asarray(data[f"x/{name}"]) for name in names)
        start = jnp.asarray(turn(data["x/initial_state"]))

        def loss(inputs):
            state, y = jax.vmap(form)(*inputs)
            weighted = jnp.sum(y * data["x/ct"]) + jnp.sum(state * turn(data["x/ct_state"]))
            return weighted, (state, y)

        run = jax.jit(jax.grad(loss, has_aux=True))
        _, (state, y) = run((*inputs, jnp.zeros_like(start)))
        assert_close(y, data["y/o"], 1e-10)
        assert_close(state, turn(data["y/final_state"]), 1e-10)
        grads, (state, y) = run((*inputs, start))
        assert_close(y, data["y/o_init"], 1e-10)
        assert_close(state, turn(data["y/final_state_init"]), 1e-10)
        for name, grad in zip(names, grads, strict=False):
            assert_close(grad, data[f"g/{name}"], 1e-9)
        assert_close(grads[-1], turn(data["g/initial_state"]), 1e-9)

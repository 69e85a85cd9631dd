"""Golden parity of the gated recurrences."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_numbers import (
    assert_close,
    assert_gradients,
    KEY,
    last_state,
    load,
    mean_square,
    run,
    stepped,
    with_arrays,
)

import linax_like as lx
from linax_like.sequence_mixers.recurrence import scan_states, step_state


def test_the_gated_recurrence_is_hgrn():
    """Parallel and step by step, with and without an initial state."""
    data = load("references/fla_hgrn")
    context = lx.SequenceContext()

    def parallel(x, log_decay, state):
        return scan_states(jnp.exp(log_decay), x, state, context)

    def by_steps(x, log_decay, state):
        def one(h, inputs):
            h = step_state(jnp.exp(inputs[1]), inputs[0], h, context)
            return h, h

        return jax.lax.scan(one, state, (x, log_decay))

    with jax.enable_x64():
        x, log_decay, h0, ct, ct_state = (
            jnp.asarray(data[f"x/{name}"])
            for name in ("x", "g", "initial_state", "ct", "ct_state")
        )
        for form in (parallel, by_steps):
            form = jax.vmap(form)
            last, states = form(x, log_decay, jnp.zeros_like(h0))
            assert_close(states, data["y/o"], 1e-10)
            assert_close(last, data["y/final_state"], 1e-10)

            def loss(*inputs, form=form):
                last, states = form(*inputs)
                return jnp.sum(states * ct) + jnp.sum(last * ct_state), (last, states)

            grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
            grads, (last, states) = grad(x, log_decay, h0)
            assert_close(states, data["y/o_init"], 1e-10)
            assert_close(last, data["y/final_state_init"], 1e-10)
            for name, got in zip(("x", "g", "initial_state"), grads, strict=True):
                assert_close(got, data[f"g/{name}"], 1e-9)


def s7_from(data, prefix):
    """The published code computes A, B, C, D and b, in this order, by one matrix."""
    get = lambda name: data[f"{prefix}/{name}"]
    states, width = len(get("base_params")), len(get("in_proj.weight"))
    cuts = np.cumsum([states, width * states, width * states, width])
    decay, into, out, skip, bias = np.split(get("x_proj.weight"), cuts)
    each_state = lambda weight: np.moveaxis(weight.reshape(width, states, width), 1, 0)
    return {
        "in_proj": get("in_proj.weight"),
        "decay_proj": decay,
        "decay_bias": get("base_params"),
        "state_in_proj": each_state(into),
        "state_bias_proj": bias,
        "state_out_proj": each_state(out),
        "skip_proj": skip,
        "gate_proj": get("gate_proj.weight"),
    }


def test_s7_is_lrnnx():
    """Which adds the input to the output; here that is the block's part."""
    data = load("lrnnx/s7")
    x = jnp.asarray(data["x"])
    mixer = lx.S7SequenceMixerConfig(state_dim=8).build(8, KEY)
    mixer = with_arrays(mixer, **s7_from(data, "p"))
    residual_mean_square = lambda y: mean_square(y + x)
    y, d_mixer, d_x = run(mixer, x, residual_mean_square)
    assert_close(y + x, data["y"], 1e-5)
    assert_close(stepped(mixer, x) + x, data["ystep"], 1e-5)
    assert_close(last_state(mixer, x), data["state"], 1e-5)
    through_the_sum = 2 * (y + x) / y.size
    assert_close(d_x + through_the_sum, data["dx"], 1e-4)
    assert_gradients(d_mixer, s7_from(data, "g"), 1e-4)


def test_s7_starts_with_memories_where_theirs_are_all_the_same():
    published = load("lrnnx/s7")["p/base_params"]
    decay = lambda base: 1 - 1 / (np.asarray(base, np.float64) ** 2 + 0.5)
    np.testing.assert_allclose(decay(published), -1 / 3, atol=1e-6)
    ours = decay(lx.S7SequenceMixerConfig(16, dt=0.01).build(8, KEY).decay_bias)
    np.testing.assert_allclose(-np.log(ours) / 0.01, np.arange(1, 17), rtol=1e-4)

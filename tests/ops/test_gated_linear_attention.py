"""Gated linear attention against a loop in NumPy, in float64, and the published reference."""

import jax.numpy as jnp
import matrix_memory_checks as checks
import numpy as np
import pytest

from linax_like.ops import gated_linear_attention, gated_linear_attention_step


def loop(q, k, v, log_decay, s0, resets=None, mask=None):
    """The definition."""
    s, y = s0, np.zeros_like(v)
    group = np.arange(v.shape[1]) // (v.shape[1] // k.shape[1])
    for t in range(len(v)):
        if mask is None or mask[t]:
            decay = np.exp(log_decay[t])
            if resets is not None and resets[t]:
                decay = np.zeros_like(decay)
            s = decay[:, :, None] * s + k[t][group][:, :, None] * v[t][:, None, :]
            y[t] = np.einsum("hkv,hk->hv", s, q[t][group])
    return s, y


def inputs(rng, time, heads, log_decay):
    groups = heads // 2 if heads % 2 == 0 else heads
    q, k = rng.standard_normal((2, time, groups, log_decay.shape[2]))
    return q, k, rng.standard_normal((time, heads, checks.VALUE)), log_decay


CASE = checks.Recurrence(gated_linear_attention, loop, inputs)


@pytest.mark.parametrize(("time", "option"), checks.CASES)
def test_values_and_gradients(time, option):
    checks.check_values_and_gradients(CASE, time, option)


def test_the_published_reference():
    def form(q, k, v, log_decay, s0):
        return gated_linear_attention(q * q.shape[-1] ** -0.5, k, v, log_decay, s0, chunk=4)

    checks.check_golden(checks.golden("fla_gla"), form, ("q", "k", "v", "gk"))


def test_one_position():
    *inputs, s0 = (jnp.asarray(z, jnp.float32) for z in checks.example(CASE, 1))
    state, y = gated_linear_attention_step(s0, *(z[0] for z in inputs))
    checks.assert_all_close((state, y[None]), gated_linear_attention(*inputs, s0), 1e-5)


def test_no_positions():
    checks.check_no_positions(CASE)


def test_padding_may_hold_nan():
    checks.check_padding_may_hold_nan(CASE)


def test_strong_and_no_decay():
    checks.check_strong_and_no_decay(CASE)


def test_accuracy():
    checks.check_accuracy(CASE)


def test_bfloat16_accumulates_in_float32():
    checks.check_bfloat16(CASE)


def test_accelerators_compute_the_same():
    checks.check_accelerators_compute_the_same(CASE)


def test_time_over_devices():
    checks.check_time_over_devices(CASE)


def test_forward_mode_needs_the_reference():
    checks.check_forward_mode_needs_the_reference(CASE)


def test_what_the_gradient_stores():
    checks.check_what_the_gradient_stores(CASE)


def test_groups_that_do_not_divide_the_heads_are_an_error():
    q, k, v, log_decay, s0 = (jnp.asarray(z, jnp.float32) for z in checks.example(CASE, 4))
    q, k = (jnp.repeat(z[:, :1], 3, axis=1) for z in (q, k))
    with pytest.raises(ValueError, match="divide the heads. Received 4 heads and 3 groups"):
        gated_linear_attention(q, k, v, log_decay, s0)

"""The generalized delta rule against a loop in NumPy, in float64, and the published reference."""

import jax.numpy as jnp
import matrix_memory_checks as checks
import numpy as np
import pytest

from linax_like.ops import generalized_delta_rule, generalized_delta_rule_step


def loop(q, k, v, a, b, log_decay, s0, resets=None, mask=None):
    """The definition."""
    s, y = s0, np.zeros_like(v)
    for t in range(len(v)):
        if mask is None or mask[t]:
            s = np.zeros_like(s) if resets is not None and resets[t] else s
            found = np.einsum("hkv,hk->hv", s, a[t])
            s = np.exp(log_decay[t])[:, :, None] * s + b[t][:, :, None] * found[:, None, :]
            s = s + k[t][:, :, None] * v[t][:, None, :]
            y[t] = np.einsum("hkv,hk->hv", s, q[t])
    return s, y


def inputs(rng, time, heads, log_decay):
    """What is found is removed, as a rule: diag(exp(log_decay)) - rate a aᵀ has a norm of at most 1."""
    q, k, a = rng.standard_normal((3, time, heads, log_decay.shape[2]))
    a = checks.unit(a)
    b = -rng.uniform(0, 1, (time, heads, 1)) * a
    return q, k, rng.standard_normal((time, heads, checks.VALUE)), a, b, log_decay


CASE = checks.Recurrence(generalized_delta_rule, loop, inputs)


@pytest.mark.parametrize(("time", "option"), checks.CASES)
def test_values_and_gradients(time, option):
    checks.check_values_and_gradients(CASE, time, option)


def test_the_published_reference():
    def form(q, k, v, w, a, b, s0):
        return generalized_delta_rule(q, k, v, a, b, -jnp.exp(w), s0, chunk=4)

    names = ("q", "k", "v", "w", "a", "b")
    checks.check_golden(checks.golden("fla_rwkv7"), form, names, transpose_state=True)


def test_one_position():
    *inputs, s0 = (jnp.asarray(z, jnp.float32) for z in checks.example(CASE, 1))
    state, y = generalized_delta_rule_step(s0, *(z[0] for z in inputs))
    checks.assert_all_close((state, y[None]), generalized_delta_rule(*inputs, s0), 1e-5)


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

"""The recurrence of sums and maxima against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from meshes import mesh_of

from linax_like.ops.max_scan import max_scan


def loop(a, b, m, resets, mask):
    before, after = np.empty_like(a), np.empty_like(a)
    for t in range(len(a)):
        before[t] = m
        if mask[t]:
            m = b[t] if resets[t] else np.maximum(m + a[t], b[t])
        after[t] = m
    return before, after


def example(time):
    rng = np.random.default_rng(time)
    a, b, m = -rng.exponential(size=(time, 3)), rng.normal(size=(time, 3)), rng.normal(size=3)
    mask = rng.random(time) < 0.7
    return (z.astype(np.float32) for z in (a, b, m)), (rng.random(time) < 0.2) & mask, mask


@pytest.mark.parametrize("time", [0, 1, 7, 64])
@pytest.mark.parametrize("plain", [True, False])
def test_values(time, plain):
    (a, b, m), resets, mask = example(time)
    if plain:
        got = max_scan(*map(jnp.asarray, (a, b, m)))
        expected = loop(a, b, m, np.zeros(time, bool), np.ones(time, bool))
    else:
        b = np.where(mask[:, None], b, np.nan)
        got = max_scan(
            *map(
                jnp.asarray,
                (
                    a,
                    b,
                    m,
                ),
            ),
            resets=jnp.asarray(resets),
            mask=jnp.asarray(mask),
        )
        expected = loop(a, b, m, resets, mask)
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-6, atol=1e-6)


def test_time_over_devices():
    (a, b, m), resets, mask = example(32)

    def local(a, b, m, resets, mask):
        return max_scan(a, b, m, resets=resets, mask=mask, axis_name="time")

    time = P("time")
    specs = (time, time, P(), time, time)
    run = jax.shard_map(local, mesh=mesh_of(4, "time"), in_specs=specs, out_specs=time)
    for got, expected in zip(
        jax.jit(run)(a, b, m, resets, mask), loop(a, b, m, resets, mask), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)

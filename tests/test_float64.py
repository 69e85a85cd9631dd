"""How far float32 outputs are from those of the recurrence in float64: a few roundings, and each
lasts as long as the mixer remembers."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from oracles import all_oracles, Oracle


ORACLES = all_oracles()
WIDTH, TIME = 8, 2048


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda o: o.id)
def test_four_roundings_for_every_step_of_memory(oracle: Oracle):
    mixer = oracle.config.build(WIDTH, jr.key(0, impl="rbg"))
    x = jr.normal(jr.key(1, impl="rbg"), (TIME, WIDTH))
    exact = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if eqx.is_array(leaf) else leaf, mixer
    )
    expected, memory = oracle.run(exact, np.asarray(x, np.float64))
    error = np.abs(np.asarray(eqx.filter_jit(mixer)(x)) - expected).max() / np.abs(expected).max()
    assert error <= 4 * np.finfo(np.float32).eps * memory, (
        f"relative error {error:.1e}, {error / np.finfo(np.float32).eps / memory:.1f} roundings "
        f"for each of {memory:.0f} steps of memory"
    )

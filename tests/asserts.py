"""What tests assert of arrays and of errors."""

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest


def assert_close(got: Any, expected: Any, what: str, tolerance: float = 1e-4) -> None:
    """Equal up to rounding, relative to the largest number of each array. Integers are equal."""
    assert jax.tree.structure(got) == jax.tree.structure(expected), what
    leaves = jax.tree.leaves_with_path(got), jax.tree.leaves(expected)
    for (path, g), e in zip(*leaves, strict=True):
        where = f"{what}: {jax.tree_util.keystr(path)}"
        assert g.shape == e.shape, f"{where} has shape {g.shape}, expected {e.shape}"
        if not jnp.issubdtype(e.dtype, jnp.inexact):
            assert np.array_equal(g, e), f"{where} is {g}, expected {e}"
            continue
        wide = np.complex128 if jnp.iscomplexobj(e) else np.float64
        g, e = np.asarray(g, wide), np.asarray(e, wide)
        assert np.all(np.isfinite(g)), f"{where} is not finite"
        error, scale = np.max(np.abs(g - e), initial=0), np.max(np.abs(e), initial=0.1)
        assert error <= tolerance * scale, f"{where} differs by {error} at a scale of {scale}"


def assert_finite(tree: Any, what: str) -> None:
    for path, leaf in jax.tree.leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
        assert jnp.all(jnp.isfinite(leaf)), f"{what}: {jax.tree_util.keystr(path)} is not finite"


def assert_zero(tree: Any, what: str) -> None:
    for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)):
        assert np.all(np.asarray(leaf) == 0), f"{what} is not exactly zero"


@contextlib.contextmanager
def without_type_checks():
    """As users run it: the shape checks of the test run would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def raises_value_error(*words: str):
    """Expects a `ValueError` whose message has all the words."""
    return pytest.raises(ValueError, check=lambda error: all(w in str(error) for w in words))

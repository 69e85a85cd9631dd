"""Meshes of virtual CPU devices. A test that needs more devices than there are is skipped."""

import jax
import pytest
from jax.sharding import AxisType


def mesh_of(count: int, name: str, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    if jax.device_count() < count:
        pytest.skip(f"needs {count} devices: there are {jax.device_count()}")
    return jax.make_mesh((count,), (name,), axis_types=(kind,))

"""A mesh of devices over which a batch is split, while every device holds the whole model."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


DATA = "data"  # the axis of examples


def data_mesh(devices: Sequence | None = None) -> Mesh:
    """One data axis over the given devices, by default all there are.

    The compiler splits the work by itself (an `Auto` axis), and adds up what the devices find.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (DATA,), axis_types=(AxisType.Auto,))


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Puts the arrays of a batch on the mesh, their examples divided evenly.

    **Raises:** `ValueError` if they cannot be.
    """
    _require_even(mesh, batch)
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(DATA)))


def stack_shards(mesh: Mesh, batch: PyTree) -> PyTree:
    """Like `shard_batch`, with an axis of devices in front of that of the examples.

    **Raises:** `ValueError` if they cannot be divided evenly.
    """
    _require_even(mesh, batch)
    cut = lambda leaf: leaf.reshape(mesh.size, len(leaf) // mesh.size, *leaf.shape[1:])
    return jax.device_put(jax.tree.map(cut, batch), NamedSharding(mesh, PartitionSpec(DATA)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Where an array stands that every device of the mesh has a copy of."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Puts a copy of every array on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))


def _require_even(mesh: Mesh, batch: PyTree) -> None:
    for leaf in jax.tree.leaves(batch):
        if len(leaf) % mesh.size != 0:
            raise ValueError(
                f"A batch of {len(leaf)} examples cannot be divided evenly over {mesh.size} "
                f"devices: use a multiple of {mesh.size}, or fewer devices."
            )

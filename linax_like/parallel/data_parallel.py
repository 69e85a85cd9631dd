"""A step over all devices of a mesh: each holds the whole state, and takes its part of the batch.

jit     one program for the whole batch: the compiler divides it, and adds up over the devices
pmap    a program for one device's part, which itself adds up over the axis of devices
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from .mesh import DATA, replicated, shard_batch, stack_shards


Step = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # state, batch → state, report


def jit_step(mesh: Mesh, step: Step) -> Step:
    """`step` compiled for batches from the host and a state that is replicated, and donated."""
    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))
    return lambda state, batch: compiled(state, shard_batch(mesh, batch))


def pmap_step(mesh: Mesh, step: Step) -> Step:
    """The same under `jax.pmap`.

    - `step`: knows the axis of devices by the name `DATA`, and returns the same on all of them.
    """
    # The state is no mapped axis but one replicated copy, as under `jit`.
    mapped = jax.pmap(
        step,
        DATA,
        in_axes=(None, 0),
        out_axes=None,
        devices=tuple(mesh.devices.flat),
        donate_argnums=0,
    )
    return lambda state, batch: mapped(state, stack_shards(mesh, batch))

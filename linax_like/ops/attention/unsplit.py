"""A kernel where a device computes alone, and XLA where it splits the work over devices.

XLA cannot split a kernel that it did not write, so JAX refuses to lower one where it would have to:
in a program for several devices, unless they are the kernel's own concern by `jax.shard_map`, or by
a mesh of explicit axes of which `vmap` runs over one. Whether it refuses is known when the program
is lowered and no earlier, so the choice is a primitive. `jax.shard_map` with `check_vma=True` also
refuses a kernel that does not say over which axes its outputs vary.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.extend.core import jaxpr_as_fun, Primitive
from jax.interpreters import batching, mlir
from jaxtyping import PyTree


def kernel_or_xla(
    kernel: Callable[..., PyTree], xla: Callable[..., PyTree], *operands: PyTree
) -> PyTree:
    """`kernel(*operands)` on a TPU if it can be lowered there, else `xla(*operands)`."""
    leaves, tree = jax.tree.flatten(operands)
    jaxpr, shapes = jax.make_jaxpr(xla, return_shape=True)(*operands)

    def flat(*leaves):
        return jax.tree.leaves(kernel(*tree.unflatten(leaves)))

    return jax.tree.structure(shapes).unflatten(_primitive.bind(*leaves, kernel=flat, xla=jaxpr))


_primitive = Primitive("kernel_or_xla")
_primitive.multiple_results = True


@_primitive.def_impl
def _run(*operands, kernel, xla):
    return jax.jit(partial(_primitive.bind, kernel=kernel, xla=xla))(*operands)


@_primitive.def_abstract_eval
def _types(*operands, kernel, xla):
    return xla.out_avals


def _batch(operands, axes, *, kernel, xla):
    xla = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(xla), axes))(*operands)
    y = _primitive.bind(*operands, kernel=jax.vmap(kernel, axes), xla=xla)
    return y, [0] * len(y)


def _lower(context, *operands, kernel, xla):
    return mlir.lower_fun(jaxpr_as_fun(xla), multiple_results=True)(context, *operands)


def _lower_for_tpu(context, *operands, kernel, xla):
    try:
        return mlir.lower_fun(kernel, multiple_results=True)(context, *operands)
    except (NotImplementedError, ValueError):  # the second is that of `check_vma`
        return _lower(context, *operands, kernel=kernel, xla=xla)


batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _lower)
mlir.register_lowering(_primitive, _lower_for_tpu, platform="tpu")

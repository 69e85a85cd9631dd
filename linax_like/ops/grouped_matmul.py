"""Grouped matrix product: every row is multiplied by the matrix of its group.

    y[r] = W[group[r]] x[r]            zero for a row of no group

Rows are sorted by group and multiplied block by block (https://arxiv.org/abs/2211.15841): none is
dropped, and no matrix meets the rows of another group.

`lax.ragged_dot` has no batching rule for matrices that a batch shares. Here a batch is more rows, and
a batch of matrices more groups. The product is bilinear, and its transposes are it again, or the sum
of outer products of each group: two primitives that yield derivatives of any order and direction.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import P
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float, Int

from ..precision import accumulation_dtype
from .varying import vary_together


def grouped_matmul(
    x: Float[Array, "rows in"], weight: Float[Array, "groups out in"], group: Int[Array, " rows"]
) -> Float[Array, "rows out"]:
    """`weight[group] @ x`, row by row, in the dtype of `x`.

    - `group`: of each row. Any that is not in `[0, groups)` gives zeros, whatever the row holds.
    """
    return _product.bind(*vary_together(x, weight.astype(x.dtype), group))


def _grouped_outer(x, y, group, groups: int):
    """`Σ y[r] x[r]ᵀ` over the rows of each group, shape `(groups, out, in)`."""
    return _outer.bind(*vary_together(x, y, group), groups=groups)


class _Blocks(NamedTuple):
    """Blocks of so many rows, each of one group; the last one of a group may reach behind it."""

    size: int
    starts: Int[Array, " groups"]  # the first row of a group that is in these blocks
    ends: Int[Array, " groups"]
    last: Int[Array, " groups"]  # the block behind the group's last

    def place(self, block: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """The group of a block, and its first row."""
        group = jnp.searchsorted(self.last, block, side="right")
        first = jnp.where(group == 0, 0, self.last[group - 1])
        return group, self.starts[group] + (block - first) * self.size

    def rows(self, x: Float[Array, "padded size"], start: Int[Array, ""]) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, self.size)

    def loop(self, body: Callable, carry: Array) -> Array:
        """`carry = body(block, carry)` over all blocks in order."""
        return jax.lax.fori_loop(0, self.last[-1], body, carry)


class _Plan(NamedTuple):
    """Rows sorted by group, and cut into blocks: large ones, and small ones for what is left."""

    order: Int[Array, " rows"]
    small: _Blocks
    large: _Blocks

    def sort(self, x: Float[Array, "rows size"]) -> Float[Array, "padded size"]:
        return jnp.pad(x[self.order], ((0, self.small.size), (0, 0)))


def _cut(group: Int[Array, " rows"], groups: int) -> _Plan:
    """Large blocks are at most half of what a group has on average, so that most have one."""
    large = min(512, max(1, len(group) // (2 * groups)))
    small = min(128, large)
    group = jnp.where((group >= 0) & (group < groups), group, groups)
    order = jnp.argsort(group)
    edges = jnp.searchsorted(group[order], jnp.arange(groups + 1, dtype=group.dtype))
    starts, ends = edges[:-1], edges[1:]
    whole = (ends - starts) // large
    middle = starts + whole * large
    rest = -(-(ends - middle) // small)
    return _Plan(
        order,
        _Blocks(small, middle, ends, jnp.cumsum(rest)),
        _Blocks(large, starts, middle, jnp.cumsum(whole)),
    )


@jax.jit
def _multiply(x, weight, group):
    plan = _cut(group, len(weight))
    sorted_x = plan.sort(x)
    y, _ = vary_together(jnp.zeros((len(sorted_x), weight.shape[1]), x.dtype), x)
    # What a small block writes behind its group is overwritten, by a later one or a large one.
    for blocks in (plan.small, plan.large):

        def set_block(block, y, blocks=blocks):
            of, start = blocks.place(block)
            rows = _dot(blocks.rows(sorted_x, start), weight[of], (1, 1))
            return jax.lax.dynamic_update_slice_in_dim(y, rows.astype(y.dtype), start, 0)

        y = blocks.loop(set_block, y)
    in_a_group = (group >= 0) & (group < len(weight))
    return jnp.where(in_a_group[:, None], y[jnp.argsort(plan.order)], 0)


@partial(jax.jit, static_argnames="groups")
def _sum_outer(x, y, group, *, groups):
    plan = _cut(group, groups)
    sorted_x, sorted_y = plan.sort(x), plan.sort(y)
    shape = (groups, y.shape[1], x.shape[1])
    total, _ = vary_together(jnp.zeros(shape, accumulation_dtype(x.dtype)), x)
    for blocks in (plan.small, plan.large):

        def add_block(block, total, blocks=blocks):
            of, start = blocks.place(block)
            rows_x, rows_y = (blocks.rows(v, start) for v in (sorted_x, sorted_y))
            if blocks is plan.small:
                mine = (start + jnp.arange(blocks.size) < blocks.ends[of])[:, None]
                rows_x, rows_y = (jnp.where(mine, rows, 0) for rows in (rows_x, rows_y))
            return total.at[of].add(_dot(rows_y, rows_x, (0, 0)))

        total = blocks.loop(add_block, total)
    return total.astype(x.dtype)


def _dot(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    dims = ((axes[:1], axes[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=accumulation_dtype(a.dtype))


def _primitive(name: str, impl: Callable, abstract: Callable) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(impl)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))
    return primitive


def _like(x, shape: tuple[int, ...]):
    """The type of `x` with another shape."""
    sharding = x.sharding.update(spec=P(*[None] * len(shape)))
    return x.update(shape=shape, sharding=sharding, weak_type=False)


_product = _primitive(
    "grouped_matmul",
    _multiply,
    lambda x, weight, group: _like(x, (x.shape[0], weight.shape[1])),
)
_outer = _primitive(
    "grouped_outer",
    _sum_outer,
    lambda x, y, group, groups: _like(x, (groups, y.shape[1], x.shape[1])),
)


# Derivatives: both operations are linear in each of their first two arguments.


def _transpose_product(ct, x, weight, group):
    if type(ct) is ad.Zero:
        return None, None, None
    if ad.is_undefined_primal(x):
        return grouped_matmul(ct, weight.swapaxes(1, 2), group), None, None
    return None, _grouped_outer(x, ct, group, weight.aval.shape[0]), None


def _transpose_outer(ct, x, y, group, groups):
    if type(ct) is ad.Zero:
        return None, None, None
    if ad.is_undefined_primal(x):
        return grouped_matmul(y, ct.swapaxes(1, 2), group), None, None
    return None, grouped_matmul(x, ct, group), None


ad.defjvp(
    _product,
    lambda t, x, weight, group: grouped_matmul(t, weight, group),
    lambda t, x, weight, group: grouped_matmul(x, t, group),
    None,
)
ad.defjvp(
    _outer,
    lambda t, x, y, group, groups: _grouped_outer(t, y, group, groups),
    lambda t, x, y, group, groups: _grouped_outer(x, t, group, groups),
    None,
)
ad.primitive_transposes[_product] = _transpose_product
ad.primitive_transposes[_outer] = _transpose_outer


# Batches: the rows of all examples together, on the device where they are.


def _batch_product(args, axes):
    x, weight, group = args
    if axes[1] is None:
        local = lambda x, group, weight: _unfold(x, _product.bind(_fold(x), weight, _fold(group)))
        return _on_each_device(local, (x, group), axes[::2], (weight,)), 0

    def local(x, group, weight):
        group = _own_groups(group, weight.shape[1])
        return _unfold(x, _product.bind(_fold(x), _fold(weight), _fold(group)))

    return _on_each_device(local, (x, group, weight), (axes[0], axes[2], axes[1]), ()), 0


def _batch_outer(args, axes, groups):
    def local(x, y, group):
        group = _own_groups(group, groups)
        total = _outer.bind(_fold(x), _fold(y), _fold(group), groups=groups * len(x))
        return _unfold(x, total)

    return _on_each_device(local, args, axes, ()), 0


batching.primitive_batchers[_product] = _batch_product
batching.primitive_batchers[_outer] = _batch_outer


def _fold(x: Array) -> Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _unfold(examples: Array, y: Array) -> Array:
    return y.reshape(len(examples), -1, *y.shape[1:])


def _own_groups(group: Int[Array, "examples rows"], groups: int) -> Int[Array, "examples rows"]:
    """Groups that examples do not share."""
    offsets = groups * jnp.arange(len(group), dtype=group.dtype)[:, None]
    return jnp.where((group >= 0) & (group < groups), group + offsets, -1)


def _on_each_device(local: Callable, mapped: tuple, axes: tuple, shared: tuple) -> Array:
    """`local(*mapped, *shared)` over examples, which an explicit mesh may have divided."""
    present = [(x, axis) for x, axis in zip(mapped, axes, strict=True) if axis is not None]
    size = present[0][0].shape[present[0][1]]
    where = jax.typeof(present[0][0]).sharding.spec[present[0][1]]
    mapped = tuple(
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(mapped, axes, strict=True)
    )
    if where is None:
        return local(*mapped, *shared)
    names = {where} if isinstance(where, str) else set(where)
    spec = (P(where),) * len(mapped) + (P(),) * len(shared)
    mapped = tuple(jax.sharding.reshard(x, P(where)) for x in mapped)
    return jax.shard_map(local, in_specs=spec, out_specs=P(where), axis_names=names)(
        *mapped, *shared
    )

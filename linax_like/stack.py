"""Stack: patterns of blocks, repeated.

Griffin's 26 layers are `((recurrent, recurrent, attention), 8)` and `((recurrent, recurrent), 1)`. The
repeats of a pattern share one program, a `lax.scan` over their stacked parameters, so that compile
time does not grow with depth.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .blocks import (
    AbstractBlock,
    AbstractBlockConfig,
    AbstractStreamsBlock,
    AbstractStreamsBlockConfig,
)
from .complexity import total
from .config import AbstractConfig, require, require_choice, require_positive
from .context import advance, advance_one, Cursor, start_cursor
from .initializers import rescale, split, stack
from .norms import AbstractNorm, AbstractNormConfig, RMSNormConfig
from .streams import advance_streams, start_streams, StreamsCursor
from .types import Aux, no_aux


Block = AbstractBlock | AbstractStreamsBlock
BlockConfig = AbstractBlockConfig | AbstractStreamsBlockConfig
Group = tuple[tuple[BlockConfig, ...], int]  # a pattern, and how often it is repeated
Residual = PyTree[Float[Array, "..."]]  # (*space, features), or by modality a dict of such
Context = Any  # a SequenceContext, or of several streams a StreamsContext

_OUTPUTS = ("out_proj", "down_proj", "shared/down_proj")  # by which a mixer writes to the stream


@dataclass(frozen=True)
class StackConfig(AbstractConfig):
    """Groups of blocks: each a pattern, repeated.

    - `groups`: `((pattern, repeats), …)`, where a pattern is a tuple of block configs.
    - `final_norm`: the norm after the last block; pre-norm blocks need one. None leaves it out.
    - `remat`: what the backward pass finds stored, pattern by pattern. `"none"`: no recomputation;
        `"dots"`: the outputs of matrix products; `"full"`: only the residual stream.
    - `unroll`: repeats per iteration of the loop over repeats. As many as there are, or more: no loop,
        which compiles for longer, but lets a step change states in place instead of copying them.
    - `branch_scale`: factor on the initial values of the projections (`out_proj`, an expert's
        `down_proj`) by which mixers write to the residual stream. One over the root of their number
        keeps the stream from growing with depth (GPT-2).
    """

    groups: tuple[Group, ...]
    final_norm: AbstractNormConfig | None = RMSNormConfig()
    remat: Literal["none", "dots", "full"] = "none"
    unroll: int = 1
    branch_scale: float = 1.0

    def __post_init__(self):
        require_choice(self, "remat")
        require_positive(self, "unroll", "branch_scale")
        law = "non-empty patterns, each repeated at least once"
        valid = all(len(pattern) > 0 and repeats > 0 for pattern, repeats in self.groups)
        require(len(self.groups) > 0 and valid, self, "groups", law)

    @classmethod
    def from_layers(cls, layers: Sequence[BlockConfig]) -> "StackConfig":
        """The stack of the given blocks, in order, with their runs and periods found."""
        return cls(_find_groups(tuple(layers)))

    @property
    def layers(self) -> tuple[BlockConfig, ...]:
        """The blocks in order, repeats written out."""
        return tuple(
            block for pattern, repeats in self.groups for _ in range(repeats) for block in pattern
        )

    def build(self, in_features: int, key: PRNGKeyArray) -> "Stack":
        return Stack(in_features, self, key)


class StackState(NamedTuple):
    """The state of a stack.

    - `cursor`: the position and the document, held once for all blocks; of several streams, each
        one's and those of all.
    - `blocks`: per group and block of its pattern, the states stacked over the repeats; of a group
        without a loop, the states of all its blocks.
    """

    cursor: Any  # a Cursor or a StreamsCursor
    blocks: tuple[tuple[PyTree, ...], ...]


class Stack(eqx.Module):
    """Applies its blocks one after the other.

    The residual stream is an array or, if the blocks are for several modalities, a dict of streams.
    """

    config: StackConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    groups: tuple[tuple[Block, ...], ...]  # every array has a leading axis of repeats
    final_norm: AbstractNorm | dict[str, AbstractNorm] | None

    def __init__(self, in_features: int, cfg: StackConfig, key: PRNGKeyArray):
        norm_key, *keys = split(key, len(cfg.groups) + 1)
        self.config = cfg
        self.in_features = in_features
        self.groups = tuple(
            _build_group(group, in_features, cfg.branch_scale, key)
            for group, key in zip(cfg.groups, keys, strict=True)
        )
        norm, modalities = cfg.final_norm, _modalities(self.groups)
        if norm is None or modalities is None:
            self.final_norm = None if norm is None else norm.build(in_features, norm_key)
        else:
            self.final_norm = {name: norm.build(in_features, norm_key) for name in modalities}

    @property
    def causal(self) -> bool:
        return all(block.causal for group in self.groups for block in group)

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """Those of the residual streams; None if there is one, which is an array."""
        return _modalities(self.groups)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset().union(*(block.uses for group in self.groups for block in group))

    def __call__(
        self, x: Residual, key: PRNGKeyArray | None = None, *, context: Context | None = None
    ) -> tuple[Residual, Aux]:
        aux = no_aux()
        keys = _split(key, len(self.groups))
        for group, (_, repeats), key in zip(self.groups, self.config.groups, keys, strict=True):

            def apply(x, pattern, _, key):
                aux = no_aux()
                for block, block_key in zip(pattern, _split(key, len(pattern)), strict=True):
                    x, block_aux = block(x, block_key, context=context)
                    aux = aux.plus(block_aux)
                return x, aux

            repeat_keys = None if key is None else jr.split(key, repeats)
            x, auxes = self._scan(apply, x, group, None, repeat_keys)
            aux = aux.plus(jax.tree.map(lambda leaf: leaf.sum(0), auxes))
        return self._finish(x), aux

    def init_state(self, max_length: int, dtype: DTypeLike | None = None) -> StackState:
        """The state before the first position of at most `max_length`."""
        init = eqx.filter_vmap(lambda block: block.init_state(max_length, dtype))
        blocks = []
        for group, (_, repeats) in zip(self.groups, self.config.groups, strict=True):
            states = [init(block) for block in group]
            blocks.append(tuple(states if self._loops(repeats) else _unstack(states, repeats)))
        modalities = self.modalities
        cursor = start_cursor() if modalities is None else start_streams(modalities)
        return StackState(cursor, tuple(blocks))

    def prefill(
        self, state: StackState, x: Residual, *, context: Context | None = None
    ) -> tuple[StackState, Residual]:
        """Advances many positions at once."""
        cursor, context = _advance_cursor(self.modalities, state.cursor, context, x)
        method = lambda block, state, x: block.prefill(state, x, context=context)
        blocks, x = self._advance(method, state.blocks, x)
        return StackState(cursor, blocks), x

    def step(
        self, state: StackState, x: Residual, *, context: Context | None = None
    ) -> tuple[StackState, Residual]:
        """Advances one position."""
        cursor, context = _advance_cursor_one(self.modalities, state.cursor, context, x)
        method = lambda block, state, x: block.step(state, x, context=context)
        blocks, x = self._advance(method, state.blocks, x)
        return StackState(cursor, blocks), x

    @property
    def complexity(self) -> str:
        """How the work grows, depth being a constant."""
        return total(*(block.complexity for group in self.groups for block in group))

    def flop_count(
        self, spatial_dims: tuple[int, ...] | dict[str, int], inference: bool = False
    ) -> int:
        """Floating-point operations of one pass through all blocks.

        - `spatial_dims`: of several streams, the length of each.
        """
        norm, count = self.final_norm, 0
        if isinstance(norm, dict) and isinstance(spatial_dims, dict):
            for name, time in spatial_dims.items():
                count += norm[name].flop_count(time, inference)
        elif isinstance(norm, AbstractNorm) and isinstance(spatial_dims, tuple):
            count += norm.flop_count(math.prod(spatial_dims), inference)
        for group, (_, repeats) in zip(self.groups, self.config.groups, strict=True):
            one = eqx.filter_eval_shape(lambda g: jax.tree.map(lambda leaf: leaf[0], g), group)
            count += repeats * sum(block.flop_count(spatial_dims, inference) for block in one)
        return count

    def layers(self) -> Iterator[Block]:
        """The blocks in order, each with its own parameters."""
        for group, (_, repeats) in zip(self.groups, self.config.groups, strict=True):
            yield from _unstack(group, repeats)

    def _loops(self, repeats: int) -> bool:
        """Whether `prefill` and `step` loop over the repeats of a group."""
        return repeats > self.config.unroll

    def _advance(self, method, states, x):
        def apply(x, pattern, states, _):
            new_states = []
            for block, state in zip(pattern, states, strict=True):
                state, x = method(block, state, x)
                new_states.append(state)
            return x, tuple(new_states)

        all_states = []
        patterns = zip(self.groups, self.config.groups, states, strict=True)
        for group, (_, repeats), group_states in patterns:
            if self._loops(repeats):
                x, group_states = self._scan(apply, x, group, group_states, None)
            else:
                x, group_states = apply(x, _unstack(group, repeats), group_states, None)
            all_states.append(group_states)
        return tuple(all_states), self._finish(x)

    def _scan(self, apply, x, group, states, keys):
        """`x, out = apply(x, pattern, states, key)` over the repeats of a group."""
        arrays, static = eqx.partition(group, eqx.is_array)

        def body(x, inputs):
            arrays, states, key = inputs
            return apply(x, eqx.combine(arrays, static), states, key)

        if self.config.remat != "none":
            policies = jax.checkpoint_policies
            dots = policies.dots_with_no_batch_dims_saveable
            policy = dots if self.config.remat == "dots" else policies.nothing_saveable
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        return jax.lax.scan(body, x, (arrays, states, keys), unroll=self.config.unroll)

    def _finish(self, x):
        norm = self.final_norm
        if isinstance(norm, dict):
            return {name: norm[name](one) for name, one in x.items()}
        return x if norm is None else norm(x)


def _build_group(
    group: Group, in_features: int, branch_scale: float, key: PRNGKeyArray
) -> tuple[Block, ...]:
    """One block after the other, stacked on the host: nothing is compiled for it."""
    pattern, repeats = group
    repeated = [
        tuple(
            _scale_branches(cfg.build(in_features, block_key), branch_scale)
            for cfg, block_key in zip(pattern, split(repeat_key, len(pattern)), strict=True)
        )
        for repeat_key in split(key, repeats)
    ]
    return jax.tree.map(lambda *leaves: stack(leaves), *repeated)


def _scale_branches(block: Block, factor: float) -> Block:
    """The block with its mixers' output projections, but not those within a mixer, scaled."""

    def scale(path, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")  # within the mixer
        return rescale(leaf, factor) if name in _OUTPUTS else leaf

    return block if factor == 1 else jax.tree_util.tree_map_with_path(scale, block)


def _unstack(pattern: Sequence[PyTree], repeats: int) -> list[PyTree]:
    """What is stacked over the repeats of a pattern, by block in order."""
    return [
        jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], one)
        for repeat in range(repeats)
        for one in pattern
    ]


def _modalities(groups: tuple[tuple[Block, ...], ...]) -> tuple[str, ...] | None:
    """Those of blocks of several streams; None if the residual stream is an array.

    **Raises:** `ValueError` if the blocks differ in this.
    """
    blocks = [block for group in groups for block in group]
    found = {b.modalities if isinstance(b, AbstractStreamsBlock) else None for b in blocks}
    if len(found) > 1:
        raise ValueError(
            "The blocks of a `Stack` must all be for the same modalities, in the same order. Received "
            f"blocks for {sorted(found, key=str)}, where None is one of an ordinary residual stream."
        )
    return found.pop()


def _advance_cursor(
    modalities, cursor: Cursor | StreamsCursor, context: Context | None, x: Residual
):
    """The cursor after a chunk, and the context that the blocks get."""
    if isinstance(cursor, Cursor):
        return advance(cursor, context, len(x))
    sizes = {name: len(one) for name, one in x.items()}
    return advance_streams(modalities, cursor, context, sizes)[0], context


def _advance_cursor_one(
    modalities, cursor: Cursor | StreamsCursor, context: Context | None, x: Residual
):
    if isinstance(cursor, Cursor):
        return advance_one(cursor, context)
    chunk = None if context is None else context.lift()
    return advance_streams(modalities, cursor, chunk, dict.fromkeys(x, 1))[0], context


def _split(key: PRNGKeyArray | None, count: int) -> Sequence[PRNGKeyArray | None]:
    return [None] * count if key is None else list(jr.split(key, count))


def _find_groups(layers: tuple[BlockConfig, ...]) -> tuple[Group, ...]:
    """Greedily, the period and number of repeats that cover most of what is left."""
    groups = []
    while layers:
        best = (1, 1)
        for period in range(1, len(layers) // 2 + 1):
            repeats = 1
            while layers[repeats * period : (repeats + 1) * period] == layers[:period]:
                repeats += 1
            if repeats > 1 and repeats * period > best[0] * best[1]:
                best = (period, repeats)
        period, repeats = best
        groups.append((layers[:period], repeats))
        layers = layers[period * repeats :]
    return tuple(_merge_single(groups))


def _merge_single(groups: list[Group]) -> Iterator[Group]:
    """Neighbouring unrepeated layers become one pattern."""
    pending: tuple[BlockConfig, ...] = ()
    for pattern, repeats in groups:
        if repeats == 1:
            pending += pattern
            continue
        if pending:
            yield pending, 1
            pending = ()
        yield pattern, repeats
    if pending:
        yield pending, 1

"""Stack: patterns of blocks, repeated.

Griffin's 26 layers are `((recurrent, recurrent, attention), 8)` and `((recurrent, recurrent), 1)`. The
repeats of a pattern share one program, a `lax.scan` over their stacked parameters, so that compile
time does not grow with depth.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray, PyTree

from .blocks import AbstractBlock, AbstractBlockConfig
from .complexity import total
from .config import AbstractConfig, require, require_choice, require_positive
from .context import advance, advance_one, Cursor, SequenceContext, start_cursor
from .initializers import rescale, split, stack
from .norms import AbstractNorm, AbstractNormConfig, RMSNormConfig
from .types import Aux, Frame, Grid, no_aux, Signal


Group = tuple[tuple[AbstractBlockConfig, ...], int]  # a pattern, and how often it is repeated

_OUTPUTS = ("out_proj", "down_proj", "shared/down_proj")  # by which a mixer writes to the stream


@dataclass(frozen=True)
class StackConfig(AbstractConfig):
    """Groups of blocks: each a pattern, repeated.

    - `groups`: `((pattern, repeats), …)`, where a pattern is a tuple of block configs.
    - `final_norm`: the norm after the last block; pre-norm blocks need one. None leaves it out.
    - `remat`: what the backward pass finds stored, pattern by pattern. `"none"`: no recomputation;
        `"dots"`: the outputs of matrix products; `"full"`: only the residual stream.
    - `unroll`: repeats per iteration of the loop over repeats.
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
    def from_layers(cls, layers: Sequence[AbstractBlockConfig]) -> "StackConfig":
        """The stack of the given blocks, in order, with their runs and periods found."""
        return cls(_find_groups(tuple(layers)))

    @property
    def layers(self) -> tuple[AbstractBlockConfig, ...]:
        """The blocks in order, repeats written out."""
        return tuple(
            block for pattern, repeats in self.groups for _ in range(repeats) for block in pattern
        )

    def build(self, in_features: int, key: PRNGKeyArray) -> "Stack":
        return Stack(in_features, self, key)


class StackState(NamedTuple):
    """The state of a stack.

    - `cursor`: the position and the document, held once for all blocks.
    - `blocks`: per group and block of its pattern, the states stacked over the repeats.
    """

    cursor: Cursor
    blocks: tuple[tuple[PyTree, ...], ...]


class Stack(eqx.Module):
    """Applies its blocks one after the other."""

    config: StackConfig = eqx.field(static=True)
    in_features: int = eqx.field(static=True)
    groups: tuple[tuple[AbstractBlock, ...], ...]  # every array has a leading axis of repeats
    final_norm: AbstractNorm | None

    def __init__(self, in_features: int, cfg: StackConfig, key: PRNGKeyArray):
        norm_key, *keys = split(key, len(cfg.groups) + 1)
        self.config = cfg
        self.in_features = in_features
        self.groups = tuple(
            _build_group(group, in_features, cfg.branch_scale, key)
            for group, key in zip(cfg.groups, keys, strict=True)
        )
        norm = cfg.final_norm
        self.final_norm = None if norm is None else norm.build(in_features, norm_key)

    @property
    def causal(self) -> bool:
        return all(block.causal for group in self.groups for block in group)

    @property
    def uses(self) -> frozenset[str]:
        return frozenset().union(*(block.uses for group in self.groups for block in group))

    def __call__(
        self, x: Grid, key: PRNGKeyArray | None = None, *, context: SequenceContext | None = None
    ) -> tuple[Grid, Aux]:
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
        blocks = tuple(tuple(init(block) for block in group) for group in self.groups)
        return StackState(start_cursor(), blocks)

    def prefill(
        self, state: StackState, x: Signal, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Signal]:
        """Advances many positions at once."""
        cursor, context = advance(state.cursor, context, len(x))
        method = lambda block, state, x: block.prefill(state, x, context=context)
        blocks, x = self._advance(method, state.blocks, x)
        return StackState(cursor, blocks), x

    def step(
        self, state: StackState, x: Frame, *, context: SequenceContext | None = None
    ) -> tuple[StackState, Frame]:
        """Advances one position."""
        cursor, context = advance_one(state.cursor, context)
        method = lambda block, state, x: block.step(state, x, context=context)
        blocks, x = self._advance(method, state.blocks, x)
        return StackState(cursor, blocks), x

    @property
    def complexity(self) -> str:
        """How the work grows, depth being a constant."""
        return total(*(block.complexity for group in self.groups for block in group))

    def flop_count(self, spatial_dims: tuple[int, ...], inference: bool = False) -> int:
        """Floating-point operations of one pass through all blocks."""
        norm = self.final_norm
        count = 0 if norm is None else norm.flop_count(math.prod(spatial_dims), inference)
        for group, (_, repeats) in zip(self.groups, self.config.groups, strict=True):
            one = eqx.filter_eval_shape(lambda g: jax.tree.map(lambda leaf: leaf[0], g), group)
            count += repeats * sum(block.flop_count(spatial_dims, inference) for block in one)
        return count

    def layers(self) -> Iterator[AbstractBlock]:
        """The blocks in order, each with its own parameters."""
        for group, (_, repeats) in zip(self.groups, self.config.groups, strict=True):
            for repeat in range(repeats):
                for block in group:
                    yield jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], block)

    def _advance(self, method, states, x):
        def apply(x, pattern, states, _):
            new_states = []
            for block, state in zip(pattern, states, strict=True):
                state, x = method(block, state, x)
                new_states.append(state)
            return x, tuple(new_states)

        all_states = []
        for group, group_states in zip(self.groups, states, strict=True):
            x, group_states = self._scan(apply, x, group, group_states, None)
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
        return x if self.final_norm is None else self.final_norm(x)


def _build_group(
    group: Group, in_features: int, branch_scale: float, key: PRNGKeyArray
) -> tuple[AbstractBlock, ...]:
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


def _scale_branches(block: AbstractBlock, factor: float) -> AbstractBlock:
    """The block with its mixers' output projections, but not those within a mixer, scaled."""

    def scale(path, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")  # within the mixer
        return rescale(leaf, factor) if name in _OUTPUTS else leaf

    return block if factor == 1 else jax.tree_util.tree_map_with_path(scale, block)


def _split(key: PRNGKeyArray | None, count: int) -> Sequence[PRNGKeyArray | None]:
    return [None] * count if key is None else list(jr.split(key, count))


def _find_groups(layers: tuple[AbstractBlockConfig, ...]) -> tuple[Group, ...]:
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
    pending: tuple[AbstractBlockConfig, ...] = ()
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

"""Models of long convolutions in the form in which the next token costs least."""

import dataclasses

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import PyTree

from ..sequence_mixers import CKConvSequenceMixer, TiledConvolution
from ..sequence_mixers.ckconv import each_repeat
from ..stack import Stack


def tiled_decoding(model: PyTree, max_length: int) -> PyTree:
    """The same model, whose causal `CKConvSequenceMixer`s do O(log² length) of work a token to decode.

    Their kernels are sampled once, and not trained any more. The repeats of a stack are written out, as
    a loop over them would copy all of their states at every token. On a CPU XLA still copies one line
    of every layer of a stack, which is memory in proportion to the length.

    - `max_length`: of the longest sequence; for `lx.generate` the longest prompt, what is generated,
        and two.

    **Raises:** `ValueError` if the model has no such mixer; one that depends on a condition is none.
    """
    written_out = jax.tree.map(_write_out, model, is_leaf=_is_stack)
    tiled = jax.tree.map(lambda node: _tile(node, max_length), written_out, is_leaf=is_convolution)
    if jax.tree.structure(tiled) == jax.tree.structure(written_out):
        raise ValueError(
            f"`tiled_decoding` was given a `{type(model).__name__}` without a convolution that it "
            "could tile: it needs a `CKConvSequenceMixer` with the boundary ('causal',) whose kernel "
            "no condition changes."
        )
    return tiled


def is_convolution(node: PyTree) -> bool:
    """Whether this is a mixer of one fixed kernel on the past."""
    return isinstance(node, CKConvSequenceMixer) and node.causal and not node.uses


def _tile(node: PyTree, max_length: int) -> PyTree:
    if not is_convolution(node):
        return node
    return each_repeat(lambda mixer: TiledConvolution.of(mixer, max_length), node)


def _write_out(stack: PyTree) -> PyTree:
    """The stack with every pattern repeated once; of anything else itself."""
    if not _is_stack(stack):
        return stack
    groups = tuple((pattern * repeats, 1) for pattern, repeats in stack.config.groups)
    config = dataclasses.replace(stack.config, groups=groups, unroll=2)  # no loop
    blocks = tuple(
        tuple(
            jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat : repeat + 1], block)
            for repeat in range(repeats)
            for block in group
        )
        for group, (_, repeats) in zip(stack.groups, stack.config.groups, strict=True)
    )
    skeleton = eqx.filter_eval_shape(config.build, stack.in_features, jr.key(0))
    parts = lambda stack: (stack.groups, stack.final_norm)
    is_none = lambda node: node is None
    return eqx.tree_at(parts, skeleton, (blocks, stack.final_norm), is_leaf=is_none)


def _is_stack(node: PyTree) -> bool:
    return isinstance(node, Stack)

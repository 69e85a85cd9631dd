"""A block of a mixture of transformers beside a dense block, with equally many tokens.

uv run python -m benchmarks.mixture_of_transformers

Both do the same number of operations: every token goes through one set of projections and one
feed-forward layer, and attention is over all tokens. What the mixture adds is to put streams together
and to part them.
"""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import linax_like as lx

from . import harness


HEADS = {"num_heads": 4}
SIZES = {"full": (256, 512, 512), "tiny": (32, 8, 8)}  # features, image and text tokens


def main(size: str = "full") -> None:
    features, image, text = SIZES[size]
    dense = lx.ResidualBlockConfig(lx.AttentionSequenceMixerConfig(**HEADS))
    mixed = lx.MoTBlockConfig(("image", "text"), **HEADS, counting="continue", start="random")
    models = {"dense": dense.build(features, jr.key(0))}
    models["mixture"], _ = same_weights(mixed.build(features, jr.key(0)), models["dense"])
    draw = np.random.default_rng(0).normal
    x = jnp.asarray(draw(size=(image + text, features)), jnp.float32)
    inputs = {"dense": x, "mixture": {"image": x[:image], "text": x[image:]}}
    arguments = {name: (models[name], inputs[name]) for name in models}
    label = {"features": features, "tokens": f"{image} + {text}", "dtype": "float32"}
    rows = []
    for kind, function in (("forward", forward), ("forward and gradient", gradient)):
        programs = {name: eqx.filter_jit(function) for name in models}
        seconds = harness.time_in_turns(programs, arguments)
        for name, model in models.items():
            row = {"block": name, "parameters": lx.count_parameters(model)}
            rows.append(label | row | {"pass": kind, "ms": seconds[name] / 1e-3})
        ratio = seconds["mixture"] / seconds["dense"]
        rows.append(label | {"block": "mixture / dense", "pass": kind, "ms": ratio})
    y, expected = (eqx.filter_jit(forward)(*arguments[name]) for name in ("mixture", "dense"))
    joined = jnp.concatenate([y["image"], y["text"]])
    rows.append(label | {"block": "difference", "ms": harness.difference(joined, expected)})
    results = "mixture_of_transformers" + ("" if size == "full" else f"_{size}")
    harness.write(results, rows, harness.environment())


def same_weights(mixture: lx.MoTBlock, dense: lx.ResidualBlock) -> tuple[Any, Any]:
    """The mixture with the dense block's weights for both modalities."""
    stacks = [
        eqx.tree_at(
            lambda stack: stack.groups,
            lx.StackConfig((((block.config,), 1),)).build(block.in_features, jr.key(0)),
            ((jax.tree.map(lambda leaf: leaf[None], block),),),
        )
        for block in (mixture, dense)
    ]
    stack, report = lx.warm_start_from_text_stack(*stacks)
    return next(stack.layers()), report


def forward(block, x):
    return block(x)[0]


def gradient(block, x):
    loss = lambda block, x: sum(jnp.sum(jnp.cos(y)) for y in jax.tree.leaves(block(x)[0]))
    return eqx.filter_grad(loss)(block, x)


if __name__ == "__main__":
    main(*sys.argv[1:])

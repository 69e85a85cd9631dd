"""A mixture of experts beside a dense layer that does as much work per position.

uv run python -m benchmarks.mixture_of_experts
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import linax_like as lx

from . import harness


TOKENS, FEATURES, EXPERTS, TOP_K, HIDDEN = 4096, 256, 8, 2, 512


def main() -> None:
    where = harness.environment()
    harness.write("mixture_of_experts", [row(router) for router in ("softmax", "sigmoid")], where)


def row(router: str) -> dict:
    """A step, forward with its gradient, of both, and how far the mixture is from its definition."""
    options = {"router": router, "num_experts": EXPERTS, "top_k": TOP_K, "expert_features": HIDDEN}
    mixture = lx.MixtureOfExpertsConfig.from_dict(
        {"type": "MixtureOfExpertsConfig"} | options
    ).build(FEATURES, jr.key(0))
    dense = lx.SwiGLUConfig(expand=TOP_K * HIDDEN / FEATURES).build(FEATURES, jr.key(1))
    x, weight = (jr.normal(jr.key(i), (TOKENS, FEATURES)) for i in (2, 3))
    functions = {
        "mixture": lambda layer, x: _step(lambda layer, x: layer(x)[0], layer, x, weight),
        "loop": lambda layer, x: _step(_every_expert, layer, x, weight),
        "dense": lambda layer, x: _step(lambda layer, x: layer(x), layer, x, weight),
    }
    arguments = {"mixture": (mixture, x), "loop": (mixture, x), "dense": (dense, x)}
    programs = harness.compile_in_turns(functions, arguments, repeats=1)
    (y, gradient), (expected, wanted) = (
        programs[name].run(mixture, x) for name in ("mixture", "loop")
    )
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True)
    compared = ("mixture", "dense")
    seconds = harness.time_in_turns(
        {name: programs[name].run for name in compared},
        {name: arguments[name] for name in compared},
    )
    return {
        "router": router,
        "tokens, features": f"{TOKENS}, {FEATURES}",
        "experts, top, hidden": f"{EXPERTS}, {TOP_K}, {HIDDEN}",
        "dtype": "float32",
        "parameters": f"{lx.count_parameters(mixture):,} / {lx.count_parameters(dense):,}",
        "GFLOP": f"{mixture.flop_count(TOKENS) / 1e9:.3g} / {dense.flop_count(TOKENS) / 1e9:.3g}",
        "output differs": harness.difference(y, expected),
        "gradient differs": max(harness.difference(*pair) for pair in pairs),
        "mixture / dense ms": " / ".join(f"{1e3 * seconds[name]:.1f}" for name in compared),
        "ratio": seconds["mixture"] / seconds["dense"],
        "memory MiB": " / ".join(f"{programs[n].temporary_bytes / 2**20:.0f}" for n in compared),
    }


def _step(apply, layer, x, weight):
    """The outputs, and the gradient of a weighted sum of them by layer and input."""

    def total(pair):
        y = apply(*pair)
        return jnp.sum(y * weight), y

    (_, y), gradient = eqx.filter_value_and_grad(total, has_aux=True)((layer, x))
    return y, gradient


def _every_expert(layer: lx.MixtureOfExperts, x: jax.Array) -> jax.Array:
    """Every expert at every position, weighted by zero where it is not among the chosen."""
    logits = x @ layer.router.T
    scores = jax.nn.softmax(logits) if layer.config.router == "softmax" else jax.nn.sigmoid(logits)
    chosen = jnp.where(scores >= jax.lax.top_k(scores, TOP_K)[0][:, -1:], scores, 0)
    weights = chosen / chosen.sum(axis=-1, keepdims=True)
    y = jnp.zeros_like(x)
    for expert in range(EXPERTS):
        gate, up, down = (w[expert] for w in (layer.gate_proj, layer.up_proj, layer.down_proj))
        y += weights[:, expert, None] * ((jax.nn.silu(x @ gate.T) * (x @ up.T)) @ down.T)
    return y


if __name__ == "__main__":
    main()

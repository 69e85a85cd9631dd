"""Recurrences of a matrix beside the Triton kernels of flash-linear-attention, on an NVIDIA GPU.

python -m benchmarks.against_fla

Both libraries get the same numbers in bfloat16, in one process, and take turns.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import torch
from fla.ops.delta_rule import chunk_delta_rule
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gla import chunk_gla
from fla.ops.kda import chunk_kda
from fla.ops.simple_gla import chunk_simple_gla

from linax_like.ops import delta_rule, gated_linear_attention, ssd

from . import harness


SHAPE = (4, 4096, 16, 64)  # batch, time, heads, size of keys and values


class Case(NamedTuple):
    """An op in both libraries, of q, k, v, the log decay and β."""

    ours: Callable
    theirs: Callable
    decay: str | None = None
    beta: bool = True


CASES = {
    "delta rule": Case(lambda q, k, v, g, beta: delta_rule(q, k, v, beta), chunk_delta_rule),
    "delta rule, a decay per head": Case(
        lambda q, k, v, g, beta: delta_rule(q, k, v, beta, g), chunk_gated_delta_rule, "head"
    ),
    "delta rule, a decay per channel": Case(
        lambda q, k, v, g, beta: delta_rule(q, k, v, beta, g), chunk_kda, "channel"
    ),
    "gated linear attention": Case(
        lambda q, k, v, g, beta: gated_linear_attention(q, k, v, g), chunk_gla, "channel", False
    ),
    "ssd": Case(lambda q, k, v, g, beta: ssd(v, g, k, q), chunk_simple_gla, "head", False),
}


def main() -> None:
    where = harness.environment("torch", "triton", "fla-core")
    rows = []
    for name in CASES:
        rows.append(row(name))
        harness.write("against_fla", rows, where)


def row(name: str) -> dict:
    """Theirs refuses some gradients, where a version of Triton is known to get them wrong."""
    case, inputs = CASES[name], _inputs(CASES[name])
    given = [i for i, z in enumerate(inputs) if z is not None]
    weight = jr.normal(jr.key(9), SHAPE, jnp.bfloat16)

    def ours(weight, *inputs):
        y, pull = jax.vjp(lambda *z: jax.vmap(lambda *one: case.ours(*one)[1])(*z), *inputs)
        return y, pull(weight)

    functions = {"forward": lambda _, *z: jax.vmap(lambda *one: case.ours(*one)[1])(*z)}
    functions["gradient"] = ours
    arguments = {name: (weight, *inputs) for name in functions}
    programs = harness.compile_in_turns(functions, arguments, repeats=1)
    tensors = [None if z is None else _to_torch(z).requires_grad_() for z in inputs]
    back = _to_torch(weight)

    def theirs(gradient: bool):
        names = ("q", "k", "v", "g", "beta")
        keywords = {n: z for n, z in zip(names, tensors, strict=True) if z is not None}
        with torch.set_grad_enabled(gradient):
            y = case.theirs(**keywords, scale=1.0)[0]
        grads = torch.autograd.grad(y, [tensors[i] for i in given], back) if gradient else None
        torch.cuda.synchronize()
        return y, grads

    run = {name: partial(p.run, *arguments[name]) for name, p in programs.items()}
    run |= {"their forward": partial(theirs, False), "their gradient": partial(theirs, True)}
    y, grads = run["gradient"]()
    columns = {
        "op": name,
        "batch, time, heads, size": ", ".join(map(str, SHAPE)),
        "dtype": "bfloat16",
        "compile gradient s": programs["gradient"].compile_seconds,
    }
    ours, their_y = _mebibytes(programs["gradient"].temporary_bytes), run["their forward"]()[0]
    columns["outputs differ"] = harness.difference(_wide(y), their_y.float().cpu())
    try:
        their_grads = run["their gradient"]()[1]
    except RuntimeError as refusal:
        print(name, refusal)
        del run["their gradient"]
        memory = f"{ours} / refused"
    else:
        columns["gradients differ"] = max(
            harness.difference(_wide(grads[i]), g.float().cpu())
            for i, g in zip(given, their_grads, strict=True)
        )
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run["their gradient"]()
        memory = f"{ours} / {_mebibytes(torch.cuda.max_memory_allocated() - before)}"
    seconds = harness.time_in_turns(run, {name: () for name in run}, 20)
    for kind in ("forward", "gradient"):
        theirs = seconds.get(f"their {kind}")
        columns[f"{kind} ms"] = f"{1e3 * seconds[kind]:.3g} / " + (
            "refused" if theirs is None else f"{1e3 * theirs:.3g}"
        )
        columns[f"{kind} ×"] = "" if theirs is None else theirs / seconds[kind]
    return columns | {"memory gradient MiB": memory}


def _inputs(case: Case) -> tuple[jax.Array | None, ...]:
    q, k, v = (jr.normal(jr.key(i), SHAPE) for i in range(3))
    q, k = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (q, k))
    beta = jr.uniform(jr.key(3), SHAPE[:-1]).astype(jnp.bfloat16) if case.beta else None
    decay = -0.1 * jr.uniform(jr.key(4), SHAPE if case.decay == "channel" else SHAPE[:-1])
    q, k, v = (z.astype(jnp.bfloat16) for z in (q, k, v))
    return q, k, v, decay if case.decay else None, beta


def _to_torch(x: jax.Array) -> torch.Tensor:
    dtype = torch.bfloat16 if x.dtype == jnp.bfloat16 else torch.float32
    return torch.tensor(_wide(x), device="cuda").to(dtype)


def _wide(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.float32))


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f}"


if __name__ == "__main__":
    main()

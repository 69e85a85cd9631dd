"""The recurrences of a matrix beside a plain batched product of matrices that does as much.

uv run python -m benchmarks.matrix_products
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr

from linax_like.ops import delta_rule, gated_linear_attention, generalized_delta_rule, ssd
from linax_like.ops.triangular import unit_triangular_inverse

from . import harness


BATCH, TIME, HEADS, SIZE = 4, 1024, 2, 64  # a head's keys and values are equally large
CHUNKS = (32, 64, 128)


class Case(NamedTuple):
    """An op, and how many products it has of a position with its chunk, and with the state."""

    apply: Callable  # of q, k, v, β, the log decay by channel, and the chunk
    with_chunk: int
    with_state: int
    solves: bool = True


def _delta_rule(q, k, v, beta, log_decay, chunk):
    return delta_rule(q, k, v, beta, chunk=chunk)[1]


def _gated_delta_rule(q, k, v, beta, log_decay, chunk):
    return delta_rule(q, k, v, beta, log_decay[..., 0], chunk=chunk)[1]


def _delta_rule_by_channel(q, k, v, beta, log_decay, chunk):
    return delta_rule(q, k, v, beta, log_decay, chunk=chunk)[1]


def _generalized_delta_rule(q, k, v, beta, log_decay, chunk):
    b = -beta[..., None] * k
    return generalized_delta_rule(q, k, v, k, b, log_decay, chunk=chunk)[1]


def _gated_linear_attention(q, k, v, beta, log_decay, chunk):
    return gated_linear_attention(q, k, v, log_decay, chunk=chunk)[1]


def _ssd(q, k, v, beta, log_decay, chunk):
    return ssd(v, log_decay[..., 0], k, q, chunk=chunk)[1]


CASES = {
    "delta rule": Case(_delta_rule, 4, 3),
    "delta rule, a decay per head": Case(_gated_delta_rule, 4, 3),
    "delta rule, a decay per channel": Case(_delta_rule_by_channel, 5, 3),
    "generalized delta rule": Case(_generalized_delta_rule, 9, 4),
    "gated linear attention": Case(_gated_linear_attention, 2, 2, solves=False),
    "ssd": Case(_ssd, 2, 2, solves=False),
}


def main() -> None:
    where = harness.environment()
    rows = [row(name, chunk) for name in CASES for chunk in CHUNKS]
    harness.write("matrix_products", rows, where)


def row(name: str, chunk: int) -> dict:
    """An op with its gradient, the products, and what of the op's work is none of them."""
    case, inputs = CASES[name], _inputs()
    apply = lambda *inputs: jax.vmap(lambda *one: case.apply(*one, chunk))(*inputs)
    gradient = jax.grad(lambda *inputs: jnp.mean(apply(*inputs) ** 2), argnums=tuple(range(5)))
    by_position = 2 * SIZE * (case.with_chunk * chunk + case.with_state * SIZE)
    flops = BATCH * TIME * HEADS * by_position
    matrices = jr.normal(jr.key(0), (flops // (2 * chunk**3), chunk, chunk))
    lower = jr.normal(jr.key(1), (BATCH * TIME * HEADS // chunk, chunk, chunk)) / chunk
    functions = {
        "forward": apply,
        "gradient": gradient,
        "products": lambda x: x @ x,
        "inverses": unit_triangular_inverse,
    }
    arguments = {
        "forward": inputs,
        "gradient": inputs,
        "products": (matrices,),
        "inverses": (lower,),
    }
    programs = harness.compile_in_turns(functions, arguments, repeats=1)
    seconds = harness.time_in_turns({n: p.run for n, p in programs.items()}, arguments)
    products = seconds["products"]
    return {
        "op": name,
        "batch, time, heads, size": f"{BATCH}, {TIME}, {HEADS}, {SIZE}",
        "chunk": chunk,
        "dtype": "float32",
        "forward ms": 1e3 * seconds["forward"],
        "its products ms": 1e3 * products,
        "forward / products": seconds["forward"] / products,
        "gradient ms": 1e3 * seconds["gradient"],
        "gradient / 3 products": seconds["gradient"] / (3 * products),
        "inverses ms": 1e3 * seconds["inverses"] if case.solves else "",
        "compile gradient s": programs["gradient"].compile_seconds,
        "memory gradient MiB": programs["gradient"].temporary_bytes / 2**20,
    }


def _inputs() -> tuple[jax.Array, ...]:
    shape = (BATCH, TIME, HEADS, SIZE)
    q, k, v = (jr.normal(jr.key(i), shape) for i in range(3))
    q, k = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (q, k))
    return q, k, v, jr.uniform(jr.key(3), shape[:-1]), -0.1 * jr.uniform(jr.key(4), shape)


if __name__ == "__main__":
    main()

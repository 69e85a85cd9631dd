"""What should stay small: the time to build; with depth, to compile; with position, the time of a token.

uv run python -m benchmarks.scaling
"""

import logging
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr

import linax_like as lx
from linax_like.inference import generate
from linax_like.tasks import TextTaskConfig
from linax_like.training import init_state, make_train_step, OptimizerConfig

from . import harness


MIXERS = {
    "S4D": lx.S4DSequenceMixerConfig(),
    "S5": lx.S5SequenceMixerConfig(),
    "LRU": lx.LRUSequenceMixerConfig(),
    "Hyena": lx.HyenaSequenceMixerConfig(),
    "attention": lx.AttentionSequenceMixerConfig(),
    "S4": lx.S4SequenceMixerConfig(),
    "Centaurus": lx.CentaurusSequenceMixerConfig(),
    "RG-LRU": lx.RGLRUSequenceMixerConfig(),
    "LinOSS": lx.LinOSSSequenceMixerConfig(),
    "Mamba": lx.MambaSequenceMixerConfig(),
    "Mamba-2": lx.Mamba2SequenceMixerConfig(),
    "HGRN": lx.HGRNSequenceMixerConfig(),
    "minGRU": lx.MinGRUSequenceMixerConfig(),
}


def main() -> None:
    where = harness.environment("optax")
    harness.write("build", [build_row(name) for name in MIXERS], where)
    harness.write("compile_depth", [depth_row(name) for name in MIXERS], where)
    harness.write("generation_position", [generation_row(name) for name in ("S5", "LRU")], where)


def model_config(name: str, blocks: int) -> lx.LanguageModelConfig:
    block = lx.ResidualBlockConfig(MIXERS[name])
    return lx.LanguageModelConfig(256, 256, lx.StackConfig((((block,), blocks),)))


def build_row(name: str) -> dict:
    """A fresh process builds 16 blocks, and then the same again."""
    command = [sys.executable, "-m", "benchmarks.scaling", "build", name]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    cold, warm, parameters = zip(*(run.stdout.split() for run in runs), strict=True)
    middle = lambda values: sorted(map(float, values))[len(values) // 2]
    return {
        "mixer": name,
        "blocks": 16,
        "width": 256,
        "parameters": int(parameters[0]),
        "cold build s": middle(cold),
        "warm build s": middle(warm),
    }


def build(name: str) -> None:
    seconds = []
    for seed in (0, 1):
        start = time.perf_counter()
        model = jax.block_until_ready(model_config(name, 16).build(jr.key(seed)))
        seconds.append(time.perf_counter() - start)
    print(*seconds, lx.count_parameters(model))


def depth_row(name: str, depths: tuple[int, int] = (4, 32)) -> dict:
    """The compilation of a training step, shallow and deep."""
    task = TextTaskConfig(length=256).load()
    batch = task.batch(0, 0, 4)
    steps, arguments = {}, {}
    for depth in depths:
        model = model_config(name, depth).build(jr.key(0))
        optimizer = OptimizerConfig().build(model, 100)
        steps[depth] = make_train_step(task.loss, optimizer, seed=0)
        arguments[depth] = (init_state(model, optimizer), batch)
    compiled = harness.compile_in_turns(steps, arguments)
    shallow, deep = (compiled[depth].compile_seconds for depth in depths)
    return {
        "mixer": name,
        "batch, time, features": "4, 256, 256",
        f"compile {depths[0]} blocks s": shallow,
        f"compile {depths[1]} blocks s": deep,
        "ratio": deep / shallow,
    }


def generation_row(name: str, count: int = 200) -> dict:
    """The time of a token near the beginning, and far into the text; and what `generate` compiles."""
    model = model_config(name, 4).build(jr.key(0))
    near, far = (_state_at(model, position) for position in (100, 20_000))
    steps = jax.jit(partial(_continue, count=count))
    arguments = {"near": (model, near), "far": (model, far)}
    seconds = harness.time_in_turns({"near": steps, "far": steps}, arguments, repeats=20)
    return {
        "mixer": name,
        "blocks": 4,
        "width": 256,
        "parameters": lx.count_parameters(model),
        "at position 100, µs per token": seconds["near"] / count * 1e6,
        "at position 20,000, µs per token": seconds["far"] / count * 1e6,
        "ratio": seconds["far"] / seconds["near"],
        "compilations of the loop in one `generate`": _compilations(model),
    }


def _state_at(model: lx.LanguageModel, position: int):
    state = model.init_state(position)
    return jax.jit(lambda s: model.prefill(s, jnp.zeros(position, jnp.int32))[0])(state)


def _continue(model, state, count):
    def step(carry, _):
        state, token = carry
        state, output = model.step(state, token)
        return (state, jnp.argmax(output.logits).astype(jnp.int32)), None

    return jax.lax.scan(step, (state, jnp.zeros((), jnp.int32)), length=count)[0]


def _compilations(model: lx.LanguageModel) -> int:
    """How often a call of `generate` compiles its loop, counted by JAX's own log."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    logger.propagate = False
    with jax.log_compiles():
        for seed in (0, 1):
            generate(model, jnp.arange(50), 100, jr.key(seed))
    logger.propagate = True
    logger.removeHandler(handler)
    return sum("Finished XLA compilation" in m and "_advance" in m for m in messages)


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        build(sys.argv[2])
    else:
        main()

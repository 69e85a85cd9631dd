"""Generation by a recurrent, a hybrid and an attention model of one size, and by transformers.

uv run --with-requirements benchmarks/requirements-transformers.txt python -m benchmarks.generation

Both libraries continue the same prompts greedily, with the same weights: Mamba, and attention as Llama
(the hybrid is no architecture of transformers). Of linax_like a prefill and a loop of steps are timed,
which do what `generate` does but for drawing; of transformers the moments at which its `generate` has
tokens. Memory is how far the process grew during one call of `generate`, without what it held before.
The models have two layers of width 128, so that all of it takes minutes on two cores.
"""

import ctypes
import dataclasses
import gc
import importlib.util
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import linax_like as lx
from linax_like.interop import huggingface

from . import harness


@dataclasses.dataclass(frozen=True)
class Size:
    features: int
    vocabulary: int
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    new_tokens: int


SIZES = {
    "full": Size(128, 1024, (1, 32), (128, 4096), 32),
    "tiny": Size(16, 64, (1, 2), (8, 32), 4),
}
MAMBA = lx.ResidualBlockConfig(lx.MambaSequenceMixerConfig(), channel_mixer=None)
# The channel mixer brings an attention block to the parameters of a Mamba block.
ATTENTION = lx.ResidualBlockConfig(
    lx.AttentionSequenceMixerConfig(num_heads=4), lx.SwiGLUConfig(expand=0.85)
)
LAYERS = {
    "Mamba": (MAMBA, MAMBA),
    "attention": (ATTENTION, ATTENTION),
    "hybrid": (MAMBA, ATTENTION),
}


def main(size: str = "full", *names: str) -> None:
    """The arguments are `full`, or `tiny` for a trial, and which models, by default all."""
    peers = ("torch", "transformers") if importlib.util.find_spec("transformers") else ()
    for name in names or LAYERS:
        where = harness.environment(*peers)
        rows = compare(name, SIZES[size], bool(peers) and name != "hybrid")
        results = f"generation_{name}" if size == "full" else f"generation_{name}_{size}"
        harness.write(results, [*rows, *comparisons(rows)], where)


def compare(name: str, size: Size, has_peer: bool) -> list[dict[str, Any]]:
    model = build(LAYERS[name], size)
    label = {"model": name, "parameters": lx.count_parameters(model)}
    mine = ours(model)
    rows = measure(label | {"library": "linax_like"}, mine, size)
    for batch in size.batches:
        ends = [draw_prompts(batch, f(size.prompts), size) for f in (min, max)]
        where = {"library": "late / early position", "batch": batch, "prompt": max(size.prompts)}
        ratio = late_over_early(model, *ends, size.new_tokens)
        rows.append({"model": name} | where | {"ms per token": ratio})
    if has_peer:
        peer = theirs(model)
        rows += measure(label | {"library": "transformers"}, peer, size)
        rows.append(label | {"library": "difference"} | agreement(mine, peer, size))
    return rows


def build(layers: tuple[lx.ResidualBlockConfig, ...], size: Size) -> lx.LanguageModel:
    stack, head = lx.StackConfig.from_layers(layers), lx.LanguageModelHeadConfig(scale=1.0)
    stack = dataclasses.replace(stack, unroll=len(layers))  # states change in place
    embedding = lx.TokenEmbeddingConfig(init_std=0.02)
    config = lx.LanguageModelConfig(size.vocabulary, size.features, stack, embedding, head)
    return config.build(jr.key(0))


class Cost(NamedTuple):
    """Seconds of the prompts and of a new token after them, and the bytes that both took."""

    prompt: float
    token: float
    memory: float


class Library(NamedTuple):
    """How a library continues prompts.

    - `cost`: of it, given prompts, new tokens and repeats.
    - `generate`: the new tokens, given prompts and how many.
    - `logits`: after the last token of each prompt.
    """

    cost: Callable[[np.ndarray, int, int], Cost]
    generate: Callable[[np.ndarray, int], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray]


@eqx.filter_jit
def read(model, prompts, new_tokens):
    """The states after the prompts, and the next tokens."""
    state = model.init_state(prompts.shape[1] + new_tokens)
    states, output = jax.vmap(partial(model.prefill, state, num_last_tokens=1))(prompts)
    return states, jnp.argmax(output.logits[:, -1], -1)


@eqx.filter_jit
def go_on(model, states, tokens, new_tokens):
    def step(carry, _):
        states, output = jax.vmap(model.step)(*carry)
        return (states, jnp.argmax(output.logits, -1)), None

    return jax.lax.scan(step, (states, tokens), length=new_tokens)[0]


def late_over_early(
    model: lx.LanguageModel, early: np.ndarray, late: np.ndarray, new_tokens: int
) -> float:
    """How much longer tokens take after long prompts than after short ones, timed in turns."""
    prompts = {"early": jnp.asarray(early), "late": jnp.asarray(late)}
    arguments = {
        name: (model, *read(model, tokens, new_tokens), new_tokens)
        for name, tokens in prompts.items()
    }
    seconds = harness.time_in_turns(dict.fromkeys(prompts, go_on), arguments)
    return seconds["late"] / seconds["early"]


def ours(model: lx.LanguageModel) -> Library:
    def cost(prompts: np.ndarray, new_tokens: int, repeats: int) -> Cost:
        tokens = jnp.asarray(prompts)
        programs = (
            (read, (model, tokens, new_tokens)),
            (go_on, (model, *read(model, tokens, new_tokens), new_tokens)),
        )
        prompt, token = (  # one after the other, so that neither empties the other's caches
            harness.time_in_turns({"": program}, {"": arguments}, repeats)[""]
            for program, arguments in programs
        )
        generate(prompts, new_tokens)  # compiles
        memory = growth(lambda: generate(prompts, new_tokens))
        return Cost(prompt, token / new_tokens, memory)

    def generate(prompts: np.ndarray, length: int) -> np.ndarray:
        return np.asarray(lx.generate(model, prompts, length, jr.key(0), temperature=0.0).tokens)

    def logits(prompts: np.ndarray) -> np.ndarray:
        read = lambda prompt: model(prompt, num_last_tokens=1).logits[0]
        return np.asarray(jax.jit(jax.vmap(read))(jnp.asarray(prompts)))

    return Library(cost, generate, logits)


def theirs(model: lx.LanguageModel) -> Library:
    """The same weights in transformers, without its optional kernels."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        huggingface.save(model, path)
        peer = transformers.AutoModelForCausalLM.from_pretrained(path).eval()

    peer.generation_config.eos_token_id = None  # no text ends early

    @torch.inference_mode()
    def timed(prompts: np.ndarray, length: int) -> tuple[np.ndarray, list[float]]:
        """The new tokens, and the moments at which they were drawn."""
        ids, moments = torch.tensor(prompts), []

        def note(tokens, scores):
            moments.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool)

        tokens = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            pad_token_id=0,
            stopping_criteria=transformers.StoppingCriteriaList([note]),
        )
        return tokens[:, ids.shape[1] :].numpy(), moments

    def cost(prompts: np.ndarray, new_tokens: int, repeats: int) -> Cost:
        timed(prompts[:, :8], 2)
        costs = []

        def measure_once():
            start = time.perf_counter()
            _, moments = timed(prompts, new_tokens + 1)
            costs.append((moments[0] - start, (moments[-1] - moments[0]) / new_tokens))

        memory = max(growth(measure_once) for _ in range(repeats))
        prompt, token = map(statistics.median, zip(*costs, strict=True))
        return Cost(prompt, token, memory)

    @torch.inference_mode()
    def logits(prompts: np.ndarray) -> np.ndarray:
        return peer(torch.tensor(prompts), logits_to_keep=1).logits[:, -1].numpy()

    return Library(cost, lambda prompts, length: timed(prompts, length)[0], logits)


def measure(label: dict[str, Any], library: Library, size: Size) -> list[dict[str, Any]]:
    rows = []
    for batch in size.batches:
        for length in size.prompts:
            repeats = 1 if batch * length > 2**16 else 5  # of what takes up to a minute
            found = library.cost(draw_prompts(batch, length, size), size.new_tokens, repeats)
            rows.append(
                label
                | {"batch": batch, "prompt": length}
                | {"prompt ms": found.prompt / 1e-3, "ms per token": found.token / 1e-3}
                | {"tokens/s": batch / found.token, "MiB": found.memory / 2**20}
            )
            print(harness.table(rows[-1:]), flush=True)
    return rows


def agreement(mine: Library, peer: Library, size: Size) -> dict[str, Any]:
    """By how much the logits differ, and how many of the tokens are the same."""
    prompts = draw_prompts(max(size.batches), min(size.prompts), size)
    same = mine.generate(prompts, size.new_tokens) == peer.generate(prompts, size.new_tokens)
    return {
        "batch": len(prompts),
        "prompt": prompts.shape[1],
        "logits differ by": harness.difference(mine.logits(prompts), peer.logits(prompts)),
        "same greedy tokens": f"{np.sum(same)} of {same.size}",
    }


def draw_prompts(batch: int, length: int, size: Size) -> np.ndarray:
    return np.random.default_rng(0).integers(size.vocabulary, size=(batch, length))


def comparisons(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much longer transformers takes."""
    found = {(row["library"], row["batch"], row["prompt"]): row for row in rows}
    lines = []
    for (library, batch, prompt), row in found.items():
        if library == "transformers":
            mine = found["linax_like", batch, prompt]
            label = {"model": row["model"], "batch": batch, "prompt": prompt}
            ratios = {name: row[name] / mine[name] for name in ("prompt ms", "ms per token")}
            lines.append(label | {"library": "transformers / linax_like"} | ratios)
    return lines


def growth(call: Callable[[], Any]) -> float:
    """The bytes by which a call takes this process beyond what it held (Linux only)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed is held, and used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = _kibibytes("VmRSS")
    jax.block_until_ready(call())
    return 1024 * (_kibibytes("VmHWM") - before)


def _kibibytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])

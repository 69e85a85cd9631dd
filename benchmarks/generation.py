"""Generation by a recurrent, a hybrid and an attention model of one size, and by transformers.

uv run --with-requirements benchmarks/requirements-transformers.txt python -m benchmarks.generation

Both libraries continue the same prompts greedily, with the same weights. Of linax_like a prefill and a
loop of steps are timed, which do what `generate` does but for drawing; of transformers the moments at
which its `generate` has tokens. Memory is how far the process grew during one call of `generate`,
without what it held before.
"""

import dataclasses
import gc
import importlib.util
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
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
    repeats: int


SIZES = {
    "full": Size(256, 1024, (1, 32), (128, 4096), 32, 3),
    "tiny": Size(16, 64, (1, 2), (8, 32), 4, 1),
}
MAMBA = lx.ResidualBlockConfig(lx.MambaSequenceMixerConfig(), channel_mixer=None)
# The channel mixer brings an attention block to the parameters of a Mamba block.
ATTENTION = lx.ResidualBlockConfig(
    lx.AttentionSequenceMixerConfig(num_heads=4), lx.SwiGLUConfig(expand=0.85)
)
LAYERS = {
    "Mamba": (MAMBA,) * 4,
    "hybrid": (MAMBA, MAMBA, MAMBA, ATTENTION),
    "attention": (ATTENTION,) * 4,
}


def main(size: str = "full") -> None:
    """The argument of the command is `full` or `tiny`, a trial."""
    chosen = SIZES[size]
    peers = ("torch", "transformers") if importlib.util.find_spec("transformers") else ()
    where = harness.environment(*peers)
    rows = []
    for name, layers in LAYERS.items():
        model = build(layers, chosen)
        count = lx.count_parameters(model)
        label = {"model": name, "parameters": count}
        rows += measure(label | {"library": "linax_like"}, ours(model), chosen)
        if peers and name == "Mamba":
            rows += measure(label | {"library": "transformers"}, theirs(model), chosen)
    results = "generation" if size == "full" else f"generation_{size}"
    harness.write(results, [*rows, *comparisons(rows)], where)


def build(layers: tuple[lx.ResidualBlockConfig, ...], size: Size) -> lx.LanguageModel:
    stack, head = lx.StackConfig.from_layers(layers), lx.LanguageModelHeadConfig(scale=1.0)
    embedding = lx.TokenEmbeddingConfig(init_std=0.02)
    config = lx.LanguageModelConfig(size.vocabulary, size.features, stack, embedding, head)
    return config.build(jr.key(0))


class Library(NamedTuple):
    """How a library continues prompts.

    - `seconds`: of the prompt and of each new token, given prompts, new tokens and repeats.
    - `generate`: does it once.
    """

    seconds: Callable[[np.ndarray, int, int], tuple[float, float]]
    generate: Callable[[np.ndarray, int], Any]


def ours(model: lx.LanguageModel) -> Library:
    @eqx.filter_jit
    def read(model, prompts, new_tokens):
        state = model.init_state(prompts.shape[1] + new_tokens)
        read = lambda tokens: model.prefill(state, tokens, num_last_tokens=1)
        states, output = jax.vmap(read)(prompts)
        return states, jnp.argmax(output.logits[:, -1], -1)

    @eqx.filter_jit
    def go_on(model, states, tokens, new_tokens):
        def step(carry, _):
            states, output = jax.vmap(model.step)(*carry)
            return (states, jnp.argmax(output.logits, -1)), None

        return jax.lax.scan(step, (states, tokens), length=new_tokens)[0]

    def seconds(prompts: np.ndarray, new_tokens: int, repeats: int) -> tuple[float, float]:
        prompts = jnp.asarray(prompts)
        functions = {"prompt": read, "tokens": go_on}
        arguments = {
            "prompt": (model, prompts, new_tokens),
            "tokens": (model, *read(model, prompts, new_tokens), new_tokens),
        }
        found = harness.time_in_turns(functions, arguments, repeats)
        return found["prompt"], found["tokens"] / new_tokens

    def generate(prompts: np.ndarray, length: int) -> lx.Generation:
        return lx.generate(model, prompts, length, jr.key(0), temperature=0.0)

    return Library(seconds, generate)


def theirs(model: lx.LanguageModel) -> Library:
    """The same weights in transformers, without its optional kernels."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        huggingface.save(model, path)
        peer = transformers.AutoModelForCausalLM.from_pretrained(path).eval()

    def generate(prompts: np.ndarray, length: int) -> list[float]:
        """The moments at which a token was drawn."""
        ids, moments = torch.tensor(prompts), []

        def note(tokens, scores):
            moments.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool)

        with torch.inference_mode():
            peer.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=0,
                stopping_criteria=transformers.StoppingCriteriaList([note]),
            )
        return moments

    def seconds(prompts: np.ndarray, new_tokens: int, repeats: int) -> tuple[float, float]:
        prompt, token = [], []
        for turn in range(repeats + 1):
            start = time.perf_counter()
            moments = generate(prompts, new_tokens + 1)
            if turn > 0:
                prompt.append(moments[0] - start)
                token.append((moments[-1] - moments[0]) / new_tokens)
        return statistics.median(prompt), statistics.median(token)

    return Library(seconds, generate)


def measure(label: dict[str, Any], library: Library, size: Size) -> list[dict[str, Any]]:
    rows = []
    for batch in size.batches:
        for length in size.prompts:
            prompts = np.random.default_rng(0).integers(size.vocabulary, size=(batch, length))
            prompt, token = library.seconds(prompts, size.new_tokens, size.repeats)
            library.generate(prompts, size.new_tokens)  # compiles
            memory = growth(lambda: library.generate(prompts, size.new_tokens))
            rows.append(
                label
                | {"batch": batch, "prompt": length}
                | {"prompt ms": prompt / 1e-3, "ms per token": token / 1e-3}
                | {"tokens/s": batch / token, "MiB": memory / 2**20}
            )
            print(harness.table(rows[-1:]), flush=True)
    return rows


def comparisons(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much longer transformers takes, and how a token's time changes with its position."""
    found = {(r["model"], r["library"], r["batch"], r["prompt"]): r for r in rows}
    lines = []
    for (model, library, batch, prompt), row in found.items():
        label = {"model": model, "batch": batch, "prompt": prompt}
        mine = found[model, "linax_like", batch, prompt]
        shortest = found[model, library, batch, min(key[3] for key in found)]
        if library == "transformers":
            ratios = {name: row[name] / mine[name] for name in ("prompt ms", "ms per token")}
            lines.append(label | {"library": "transformers / linax_like"} | ratios)
        elif row is not shortest:
            ratio = {"ms per token": row["ms per token"] / shortest["ms per token"]}
            lines.append(label | {"library": "linax_like, late / early position"} | ratio)
    return lines


def growth(call: Callable[[], Any]) -> float:
    """The bytes by which a call takes this process beyond what it held (Linux only)."""
    gc.collect()
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

"""The law of generation: reading a prompt in parts and then token by token is reading everything.

For every mixer and for hybrids of them, prompts of different lengths stand in one batch, padded on
the left or on the right, and are read in chunks; what follows, padded as well, is read step by step.
The logits are those of each row read at once, alone.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.models.hybrid import MIXERS


KEY = jr.key(0, impl="rbg")
TOTAL, PADDED, VOCABULARY = 15, 12, 13
CHUNKS = (2, 3, 4, 6)  # sizes; every case has one of them
PROMPTS = (10, 1, 5)  # lengths; the continuations fill the rows up to TOTAL
STEPS = TOTAL - min(PROMPTS)
RECURRENT = sorted(MIXERS.keys() - {"attn"})
FAST = ["attn", "GatedDeltaNet", "LRU", "Mamba"]


def hybrid(seed):
    """Three layers, at least one of them attention."""
    names = np.random.default_rng(seed).choice(RECURRENT, 2, replace=False).tolist()
    names.insert(seed, "attn")
    return names


CASES = [[name] for name in sorted(MIXERS)] + [hybrid(seed) for seed in (0, 1, 2)]
MARKED = [
    pytest.param(
        number,
        marks=() if len(case) == 1 and case[0] in FAST else pytest.mark.slow,
        id="-".join(case),
    )
    for number, case in enumerate(CASES)
]


def read_alone(model, tokens):
    return jax.vmap(model)(tokens).logits


def read_in_parts(model, prompt, mask, rest, real):
    """The logits of the chunks of a padded prompt, and of the steps after it, of one row."""

    def read(state, chunk):
        tokens, mask = chunk
        context = lx.SequenceContext(mask=mask)
        state, output = model.prefill(state, tokens, context=context)
        return state, output.logits

    def step(state, inputs):
        token, real = inputs
        state, output = model.step(state, token, context=lx.SequenceContext(mask=real))
        return state, output.logits

    state, before = jax.lax.scan(read, model.init_state(TOTAL), (prompt, mask))
    _, after = jax.lax.scan(step, state, (rest, real))
    return jnp.concatenate([before.reshape(PADDED, -1), after])


def padded_rows(tokens):
    """For every row, padded on the left and on the right: prompt, mask, the rest, what is real."""
    pad = lambda values, size, left, fill: np.pad(
        values, (size - len(values), 0) if left else (0, size - len(values)), constant_values=fill
    )
    rows = []
    for row, length in zip(np.asarray(tokens), PROMPTS, strict=True):
        for left in (True, False):
            prompt, rest = pad(row[:length], PADDED, left, -5), pad(row[length:], STEPS, left, -5)
            rows.append((prompt, prompt >= 0, rest, rest >= 0))
    return [jnp.asarray(np.stack(values)) for values in zip(*rows, strict=True)]


@pytest.mark.parametrize("number", MARKED)
def test_prefill_in_parts_and_steps_are_each_row_alone(number):
    names = CASES[number]
    width = 16 if len(names) > 1 else 0
    config = lx.presets.hybrid_language_model(16, 8, len(names), VOCABULARY, names, width)
    model = config.build(jr.fold_in(KEY, number))
    tokens = jr.randint(KEY, (len(PROMPTS), TOTAL), 0, VOCABULARY)
    alone = np.asarray(eqx.filter_jit(read_alone)(model, tokens))[..., :VOCABULARY]
    prompt, mask, rest, real = padded_rows(tokens)
    cut = lambda values: values.reshape(len(values), -1, CHUNKS[number % len(CHUNKS)])
    parts = eqx.filter_jit(jax.vmap(read_in_parts, (None, 0, 0, 0, 0)))
    got = parts(model, cut(prompt), cut(mask), rest, real)[..., :VOCABULARY]
    real = np.concatenate([mask, real], axis=1)
    for row in range(len(got)):
        np.testing.assert_allclose(got[row][real[row]], alone[row // 2], atol=1e-4, rtol=0)
    assert np.ptp(alone, axis=1).mean() > 0.1

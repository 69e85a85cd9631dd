"""Low-rank adaptation: nothing at first, trained alone, and merged by adding up."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.interop import load_weights, save_weights
from linax_like.tasks.base import classify
from linax_like.training import init_state, make_train_step, OptimizerConfig


KEY = jr.key(0, impl="rbg")
PATTERNS = ("stack/[02]/*/hidden_layers/*/weight", "embedding/*")


def build():
    """Three layers in one stack of arrays."""
    block = lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), lx.SwiGLUConfig())
    return lx.LanguageModelConfig(20, 8, lx.StackConfig((((block,), 3),))).build(KEY)


def adapt():
    return lx.lora(build(), PATTERNS, 2, KEY)


def bits(model):
    return {name: np.asarray(leaf).tobytes() for name, leaf in lx.named_arrays(model).items()}


def is_adapted(name):
    hidden = "channel_mixer/hidden_layers/0/weight"
    return name in ("embedding/table", f"stack/0/{hidden}", f"stack/2/{hidden}")


@pytest.fixture(scope="module")
def trained():
    """An adapted model after two steps, and what the optimizer holds."""
    adapted = adapt()
    optimizer = OptimizerConfig(learning_rate=0.1, warmup=0.0).build(adapted, 10)

    def loss(adapted, batch, keys):
        logits, aux = jax.vmap(adapted.merged)(batch[:, :-1], keys)
        return classify(logits, batch[:, 1:], aux)

    tokens = np.random.default_rng(0).integers(0, 20, (4, 11))
    state = init_state(adapted, optimizer)
    step = jax.jit(make_train_step(loss, optimizer, seed=0))
    for _ in range(2):
        state, _ = step(state, tokens)
    return state.model, state.optimizer


def test_at_first_the_model_is_the_same():
    assert bits(adapt().merged) == bits(build())


def test_adapters_alone_are_trained(trained):
    adapted, optimizer = trained
    before, after = bits(build()), bits(adapted.merged)
    assert bits(adapted.base.array) == before
    for name, value in after.items():
        assert (value != before[name]) == is_adapted(name), name
    sizes = {leaf.shape for leaf in jax.tree.leaves(optimizer)}
    assert sizes == {(), (3, 2, 8), (3, 24, 2), (20, 2), (2, 8)}
    assert lx.count_parameters(adapted) == 3 * 2 * (8 + 24) + 2 * (20 + 8)


def test_merged_is_unmerged(trained):
    adapted, _ = trained
    pick = lambda model: model.stack.groups[0][0].channel_mixer.hidden_layers[0].weight
    weight, adapter = pick(adapted.base.array), pick(adapted.adapters)
    x = jr.normal(KEY, (5, 8))
    for layer in (0, 2):
        apart = x @ weight[layer].T + (x @ adapter.a[layer].T) @ adapter.b[layer].T
        np.testing.assert_allclose(x @ pick(adapted.merged)[layer].T, apart, atol=1e-6)
        assert jnp.abs(apart - x @ weight[layer].T).max() > 0.01


def test_adapters_survive_a_file(trained, tmp_path):
    adapted, _ = trained
    save_weights(tmp_path / "adapters.safetensors", adapted.adapters)
    skeleton = eqx.filter_eval_shape(adapt).adapters
    loaded = load_weights(tmp_path / "adapters.safetensors", skeleton)
    again = lx.Adapted(lx.Buffer(build()), loaded)
    assert bits(again.merged) == bits(adapted.merged)


@pytest.mark.parametrize(
    "patterns, rank, message",
    [
        (("stack/*/final",), 2, "`stack/\\*/final` fits no array"),
        (("stack/1/*",), 2, "adapts matrices of real numbers. `stack/1/.*` has shape \\(8,\\)"),
        (("embedding/*",), 0, "`rank` must be positive. Received 0"),
    ],
)
def test_what_is_no_matrix_is_refused(patterns, rank, message):
    with pytest.raises(ValueError, match=message):
        lx.lora(build(), patterns, rank, KEY)


def test_what_is_not_trained_is_refused():
    model = (jnp.ones((3, 4)), lx.Buffer(jnp.ones((3, 4))))
    with pytest.raises(ValueError, match="adapts what is trained, which `1.* is not"):
        lx.lora(model, ("*",), 2, KEY)

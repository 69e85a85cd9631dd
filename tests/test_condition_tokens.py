"""Blocks whose positions read condition tokens, or whose mixer has its responses normalised."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from golden_numbers import KEY

import linax_like as lx


X = jr.normal(jr.key(1, impl="rbg"), (5, 8))
TOKENS = jr.normal(jr.key(2, impl="rbg"), (4, 6))
MASK = jnp.array([True, False, True, True])
HERE = lx.SequenceContext(condition_tokens=TOKENS, condition_mask=MASK)
BLOCK = lx.ResidualBlockConfig(
    lx.LRUSequenceMixerConfig(4),
    lx.MLPConfig(),
    layer_scale=0.5,
    condition_mixer=lx.CrossAttentionConfig(2, token_features=6, max_tokens=4),
)


@pytest.fixture(scope="module")
def block():
    return BLOCK.build(8, KEY)


def test_positions_read_between_the_mixers(block):
    """By the formula; tokens that are padding say nothing, and padding reads nothing."""

    @eqx.filter_jit
    def forms(block, x, context):
        h = x + 0.5 * block.sequence_mixer(block.sequence_norm(x))
        h = h + 0.5 * block.condition_mixer(block.condition_norm(h), TOKENS[MASK])
        h = h + 0.5 * block.channel_mixer(block.channel_norm(h))
        return block(x, context=context)[0], h

    junk = jnp.where(MASK[:, None], TOKENS, jnp.nan)
    y, expected = forms(block, X, HERE.replace(condition_tokens=junk))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert np.abs(forms(block, X, HERE.replace(condition_tokens=-TOKENS))[0] - y).max() > 1e-2


def test_steps_are_the_whole_and_the_work_is_that_of_the_parts(block):
    stack = lx.StackConfig((((BLOCK,), 1),)).build(8, KEY)
    assert stack.uses == {"condition_tokens", "condition_mask"} and stack.causal

    @eqx.filter_jit
    def forms(stack):
        state, first = stack.prefill(stack.init_state(5), X[:4], context=HERE)
        _, last = stack.step(state, X[4], context=HERE.replace(mask=jnp.array(True)))
        return jnp.concatenate([first, last[None]]), stack(X, context=HERE)[0]

    parts, whole = forms(stack)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    without = lx.ResidualBlockConfig(BLOCK.sequence_mixer, BLOCK.channel_mixer).build(8, KEY)
    more = block.condition_mixer.flop_count((5,)) + block.condition_norm.flop_count(5)
    assert block.flop_count((5,)) == without.flop_count((5,)) + more
    # What a block of no condition is drawn as does not change.
    assert np.array_equal(block.channel_mixer.out_proj, without.channel_mixer.out_proj)


def test_a_model_says_what_its_conditions_lack():
    model_of = lambda block: lx.SequenceModelConfig(8, 8, 3, lx.StackConfig((((block,), 1),)))
    config, plain = model_of(BLOCK), model_of(lx.ResidualBlockConfig(BLOCK.sequence_mixer))
    assert lx.SequenceModelConfig.from_json(config.to_json()) == config
    run = lambda config, context: eqx.filter_eval_shape(
        lambda x: config.build(KEY)(x, context=context), X
    )
    assert run(config, HERE).logits.shape == (3,)
    for config, context, message in (
        (config, None, r"`context.condition_tokens` of shape \(tokens, 6\). Received None"),
        (config, lx.SequenceContext(condition_tokens=jnp.ones((5, 6))), "max_tokens=4.*given 5"),
        (plain, HERE, "`context.condition_tokens`, but none of its layers"),
        (plain, lx.SequenceContext(condition_mask=MASK), "`context.condition_mask`, but none"),
    ):
        with pytest.raises(ValueError, match=message):
            run(config, context)


def test_a_response_norm_follows_the_mixer():
    """Padding has no part in the responses; such a block is not causal."""
    norm = lx.GlobalResponseNormConfig()
    block = lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), None, response_norm=norm)
    block = block.build(8, KEY)
    block = eqx.tree_at(lambda b: b.response_norm.weight, block, jnp.arange(8.0))
    context = lx.SequenceContext(mask=jnp.arange(7) < 5)
    y, _ = block(jnp.pad(X, ((0, 2), (0, 0)), constant_values=jnp.nan), context=context)
    expected = X + block.response_norm(block.sequence_norm(X))
    np.testing.assert_allclose(y[:5], expected, atol=1e-6)
    assert block.flop_count((5,), inference=True) == (4 + 5) * 5 * 8
    assert not block.causal
    with pytest.raises(ValueError, match="response_norm=….* whole examples"):
        block.init_state(5)

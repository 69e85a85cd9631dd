"""Blocks and stacks: residual arithmetic, scanned groups, states, public names."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import linax_like as lx
from linax_like.paths import named_arrays, with_arrays


FEATURES, TIME = 8, 11
LRU = lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(4), lx.GLUConfig())
WIDE = lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(6), None, lx.LayerNormConfig())
LOCAL = lx.ResidualBlockConfig(
    lx.AttentionSequenceMixerConfig(num_heads=2, window=4), lx.MLPConfig()
)
GRIFFIN = lx.StackConfig((((LRU, LRU, LOCAL), 2), ((LRU, WIDE), 1)))


@pytest.fixture(scope="module")
def x():
    return jr.normal(jr.key(1, impl="rbg"), (TIME, FEATURES))


@pytest.fixture(scope="module")
def stack():
    return GRIFFIN.build(FEATURES, jr.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def context():
    segment_ids = jnp.asarray([3, 3, 3, 5, 5, 0, 5, 5, 7, 7, 7], jnp.int32)
    mask = jnp.ones((TIME,), bool).at[5].set(False)
    return lx.SequenceContext(segment_ids=segment_ids, mask=mask)


def close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


def test_a_stack_is_its_blocks_one_after_the_other(stack, x):
    y = x
    for block in stack.layers():
        y, _ = block(y)
    close(stack(x)[0], stack.final_norm(y))


def test_pre_and_post_norm_are_what_they_say(x):
    key = jr.key(2, impl="rbg")
    for position in ("pre", "post"):
        cfg = dataclasses.replace(LRU, norm_position=position, layer_scale=0.3)
        block = cfg.build(FEATURES, key)
        mix, channel = block.sequence_mixer, block.channel_mixer
        if position == "pre":
            h = x + 0.3 * mix(block.sequence_norm(x))
            expected = h + 0.3 * channel(block.channel_norm(h))
        else:
            h = block.sequence_norm(x + 0.3 * mix(x))
            expected = block.channel_norm(h + 0.3 * channel(h))
        close(block(x)[0], expected)


def test_dropout_and_drop_path_keep_the_mean(x):
    key, samples = jr.key(3, impl="rbg"), 4000
    for options in ({"dropout": 0.4}, {"drop_path": 0.4}):
        cfg = lx.ResidualBlockConfig(lx.IdentitySequenceMixerConfig(), None, **options)
        block = cfg.build(FEATURES, key)
        draws = jax.jit(jax.vmap(lambda key: block(x, key)[0] - x))(jr.split(key, samples))
        branch = block(x)[0] - x
        np.testing.assert_allclose(draws.mean(0), branch, atol=0.25)
        dropped = jnp.all(draws == 0, axis=(1, 2)).mean()
        assert abs(dropped - options.get("drop_path", 0.0)) < 0.05
        assert abs((draws == 0).mean() - 0.4) < 0.05


def test_bfloat16_mixers_on_a_float32_stream(x):
    key = jr.key(4, impl="rbg")
    block = dataclasses.replace(LRU, compute_dtype="bfloat16").build(FEATURES, key)
    seen = str(jax.make_jaxpr(lambda x: block(x)[0])(x))
    y, _ = block(x)
    assert y.dtype == jnp.float32 and "bf16" in seen
    close(y, LRU.build(FEATURES, key)(x)[0], atol=0.1)


def test_prefill_and_step_are_the_whole_sequence(stack, x, context):
    whole, _ = jax.jit(lambda: stack(x, context=context))()
    read = jax.jit(lambda state, x, context: stack.prefill(state, x, context=context))
    state = stack.init_state(TIME)
    real = np.asarray(context.mask)
    parts = []
    for start, stop in ((0, 4), (4, 4), (4, 7), (7, TIME)):
        here = context.map_time(lambda value, a=start, b=stop: value[a:b])
        state, y = read(state, x[start:stop], here)
        parts.append(y)
    close(jnp.concatenate(parts)[real], whole[real])
    stepped, outputs = stack.init_state(TIME), []
    step = jax.jit(lambda state, x, context: stack.step(state, x, context=context))
    for t in range(TIME):
        stepped, y = step(stepped, x[t], context.map_time(lambda value, t=t: value[t]))
        outputs.append(y)
    close(jnp.stack(outputs)[real], whole[real])
    jax.tree.map(close, state, stepped)
    assert state.cursor.position == 3 and state.cursor.segment_id == 7


def test_remat_and_unroll_change_nothing(x):
    config = lx.StackConfig((((LRU,), 2),))
    stack = config.build(FEATURES, jr.key(0, impl="rbg"))
    arrays = named_arrays(stack)
    grad = eqx.filter_jit(eqx.filter_grad(lambda stack: jnp.sum(stack(x)[0] ** 2)))
    expected = jax.tree.leaves(grad(stack))
    for options in ({"remat": "full"}, {"remat": "dots"}, {"unroll": 2}):
        cfg = dataclasses.replace(config, **options)
        other = with_arrays(eqx.filter_eval_shape(cfg.build, FEATURES, jr.key(0)), arrays)
        for a, b in zip(jax.tree.leaves(grad(other)), expected, strict=True):
            close(a, b, atol=1e-3)


def test_program_size_does_not_grow_with_depth(x):
    def program(repeats):
        stack = lx.StackConfig((((LRU,), repeats),)).build(FEATURES, jr.key(0))
        return len(jax.jit(lambda stack: stack(x)).lower(stack).as_text().splitlines())

    assert program(16) == program(2)


def test_groups_are_found():
    found = lx.StackConfig.from_layers([LRU, LRU, LOCAL] * 8 + [LRU, LRU])
    assert found.groups == (((LRU, LRU, LOCAL), 8), ((LRU,), 2))
    assert lx.StackConfig.from_layers([LRU, WIDE, LOCAL]).groups == (((LRU, WIDE, LOCAL), 1),)
    assert lx.StackConfig.from_layers([LRU] * 5).groups == (((LRU,), 5),)
    mixed = [WIDE, LRU, LRU, LRU, LOCAL]
    assert lx.StackConfig.from_layers(mixed).layers == tuple(mixed)


def test_public_names_do_not_depend_on_the_grouping(stack, x):
    flat = lx.StackConfig(tuple(((layer,), 1) for layer in GRIFFIN.layers))
    skeleton = eqx.filter_eval_shape(flat.build, FEATURES, jr.key(0))
    arrays = named_arrays(stack)
    assert "7/sequence_mixer/log_decay" in arrays and "final_norm/weight" in arrays
    close(with_arrays(skeleton, arrays)(x)[0], stack(x)[0])


def test_arrays_that_do_not_fit_are_refused(stack):
    arrays = named_arrays(stack)
    name = "0/sequence_mixer/log_decay"
    with pytest.raises(ValueError, match=f"`{name}` is missing"):
        with_arrays(stack, {k: v for k, v in arrays.items() if k != name})
    with pytest.raises(ValueError, match="`8/skip` is not one of this model's"):
        with_arrays(stack, arrays | {"8/skip": arrays[name]})
    with pytest.raises(ValueError, match=f"`{name}` has shape"):
        with_arrays(stack, arrays | {name: arrays[name][:2]})


def test_bad_stacks_say_why():
    transposed = lx.S4DSequenceMixerConfig(transposed=True)
    with pytest.raises(ValueError, match="transposed"):
        lx.ResidualBlockConfig(transposed)
    with pytest.raises(ValueError, match="groups"):
        lx.StackConfig(())
    with pytest.raises(ValueError, match="dropout"):
        lx.ResidualBlockConfig(lx.LRUSequenceMixerConfig(), dropout=1.0)
    bidirectional = lx.ResidualBlockConfig(lx.S5SequenceMixerConfig(8, bidirectional=True))
    stack = lx.StackConfig((((bidirectional,), 1),)).build(FEATURES, jr.key(0))
    assert not stack.causal
    with pytest.raises(ValueError, match="bidirectional"):
        stack.init_state(4)

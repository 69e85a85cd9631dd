"""What mixers of sequences promise on grids, beyond the laws."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from asserts import assert_close, raises_value_error

import linax_like as lx


KEY = jr.key(0, impl="rbg")
LRU = lx.LRUSequenceMixerConfig(state_dim=4)
Config = lx.GridOrdersSequenceMixerConfig
IMAGE = jr.normal(jr.key(1, impl="rbg"), (3, 4, 8))
VOLUME = jr.normal(jr.key(2, impl="rbg"), (2, 2, 2, 8))


@eqx.filter_jit
def call(mixer, x, context=None):
    return mixer(x, context=context)


def read(mixer, path, x):
    """What the mixer makes of the points on a path, each where it lies."""
    path = list(path)
    y = call(mixer, np.stack([x[point] for point in path]))
    result = np.zeros(x.shape, np.float32)
    for point, value in zip(path, y, strict=True):
        result[point] = value
    return result


def test_cross_scan_of_an_image_is_four_readings():
    mixer = Config(LRU, 2).build(8, KEY)
    rows = [(i, j) for i in range(3) for j in range(4)]
    columns = [(i, j) for j in range(4) for i in range(3)]
    paths = [rows, rows[::-1], columns, columns[::-1]]
    parts = [read(f, path, IMAGE) for f, path in zip(mixer.mixers, paths, strict=True)]
    assert_close(call(mixer, IMAGE), sum(parts), "cross scan")
    assert all(np.abs(a - b).max() > 1e-2 for a, b in zip(parts, parts[1:], strict=False))


def test_merges():
    shared = Config(LRU, 2, "bidirectional", "mean", shared=True).build(8, KEY)
    path = list(np.ndindex(3, 4))
    there, back = (read(shared.mixers[0], p, IMAGE) for p in (path, path[::-1]))
    assert_close(call(shared, IMAGE), (there + back) / 2, "mean")
    project = Config(LRU, 2, "bidirectional", "project", shared=True).build(8, KEY)
    there, back = (read(project.mixers[0], p, IMAGE) for p in (path, path[::-1]))
    both = np.concatenate([there, back], axis=-1)
    assert_close(call(project, IMAGE), both @ project.out_proj.T, "project")


def test_axes_in_another_order_give_the_output_in_that_order():
    """With shared weights; a volume is read twelve times."""
    mixer = Config(LRU, 3, merge="mean", shared=True).build(8, KEY)
    assert len(mixer.orders) == 12 and len(set(mixer.orders)) == 12
    y = call(mixer, VOLUME)
    moved = call(mixer, VOLUME.transpose(2, 0, 1, 3))
    assert_close(moved, y.transpose(2, 0, 1, 3), "axes moved")


def test_padding_of_a_grid_is_no_grid():
    """An image within a larger one, whose rest is padding."""
    mixer = Config(LRU, 2, shared=True).build(8, KEY)
    mask = jnp.zeros((5, 6), bool).at[1:4, 2:].set(True)
    padded = jnp.full((5, 6, 8), jnp.nan).at[1:4, 2:].set(IMAGE)
    y = call(mixer, padded, lx.SequenceContext(mask=mask))
    assert_close(y[1:4, 2:], call(mixer, IMAGE), "padded")
    assert np.all(np.asarray(y)[~np.asarray(mask)] == 0)


def test_in_raster_order_it_can_advance_point_by_point():
    mixer = Config(LRU, 2, "raster", "project").build(8, KEY)
    points = IMAGE.reshape(12, 8)
    assert mixer.causal
    _, y = eqx.filter_jit(lx.fold)(mixer, mixer.init_state(12), points)
    assert_close(y.reshape(IMAGE.shape), call(mixer, IMAGE), "raster")


def test_a_stack_of_grids_steps_in_raster_order():
    block = lx.ResidualBlockConfig(Config(LRU, 2, "raster"), channel_mixer=None)
    stack = lx.StackConfig.from_layers([block]).build(8, KEY)
    grid, _ = eqx.filter_jit(stack)(IMAGE)
    _, y = eqx.filter_jit(stack.prefill)(stack.init_state(12), IMAGE.reshape(12, 8))
    assert_close(y.reshape(IMAGE.shape), grid, "stack")


def test_what_a_grid_has_no_use_for():
    attention = Config(lx.AttentionSequenceMixerConfig(), 2)
    assert attention.build(8, KEY).uses == frozenset()
    assert attention.updated("spatial_ndim", 1).build(8, KEY).uses == {"positions"}
    mixer = Config(LRU, 2).build(8, KEY)
    ids = lx.SequenceContext(segment_ids=jnp.zeros((3, 4), jnp.int32))
    with raises_value_error("segment_ids", "grid"):
        mixer(IMAGE, context=ids)
    with raises_value_error("GridOrdersSequenceMixer", "axis_name"):
        mixer(IMAGE, context=lx.SequenceContext(axis_name="time"))
    with raises_value_error("GridOrdersSequenceMixer", "(height, width, 8)", "(12, 8)"):
        mixer(IMAGE.reshape(12, 8))
    with raises_value_error("GridOrdersSequenceMixer", "raster"):
        mixer.init_state(4)
    with raises_value_error("GridOrdersSequenceMixer", "not causal"):
        Config(lx.AttentionSequenceMixerConfig(causal=False), 2).build(8, KEY)


@pytest.mark.parametrize(
    ("field", "value"), [("spatial_ndim", 4), ("orders", "hilbert"), ("merge", "max")]
)
def test_configs_validate(field, value):
    with raises_value_error(field, repr(value)):
        Config(LRU, 2).updated(field, value)


def test_flops_count_every_reading():
    lru = LRU.build(8, KEY).flop_count((12,), inference=True)
    assert Config(LRU, 2).build(8, KEY).flop_count((3, 4), True) == 4 * lru + 3 * 12 * 8
    shared = Config(LRU, 2, merge="project", shared=True).build(8, KEY)
    assert shared.flop_count((3, 4), inference=True) == 4 * lru + 12 * 2 * 32 * 8

"""`SequenceContext` and `Cursor` against plain Python, for any documents and any padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from asserts import without_type_checks
from hypothesis import given, settings, strategies as st
from jax import P
from jax.sharding import AxisType

from linax_like.context import (
    advance,
    advance_one,
    check_segment_ids,
    Cursor,
    SequenceContext,
    start_cursor,
)


TIME = 12
FAST = settings(deadline=None, max_examples=60)


@st.composite
def sequences(draw):
    """Ids of packed documents, with junk at padding, and the mask."""
    mask = np.array(draw(st.lists(st.booleans(), min_size=TIME, max_size=TIME)))
    ids = np.array(draw(st.lists(st.integers(-3, 9), min_size=TIME, max_size=TIME)), np.int32)
    document, fresh = 10, 10
    for t in range(TIME):
        if mask[t]:
            if draw(st.integers(0, 3)) == 0:
                fresh += draw(st.integers(1, 3))
                document = fresh
            ids[t] = document
    return ids, mask


def expected(ids, mask, previous, position):
    """Previous ids, resets, positions (0 at padding), and the cursor after the sequence."""
    before, resets, positions = [], [], []
    for id, real in zip(ids.tolist(), mask.tolist(), strict=True):
        before.append(id if previous is None else previous)
        new = real and previous is not None and id != previous
        resets.append(new)
        position = 0 if new else position
        positions.append(position if real else 0)
        if real:
            position, previous = position + 1, id
    return before, resets, positions, (position, previous)


@jax.jit
def computed(ids, mask, previous, position):
    context = SequenceContext(segment_ids=ids, mask=mask, previous_segment_id=previous)
    return (
        context.previous_segment_ids(),
        context.resets(),
        context.positions_from(position, TIME),
    )


@FAST
@given(sequences(), st.integers(0, 5))
def test_documents_and_positions(sequence, position):
    ids, mask = sequence
    for previous in (None, 10, 99):
        id = None if previous is None else jnp.int32(previous)
        for mask_or_none, real in ((jnp.asarray(mask), mask), (None, np.ones(TIME, bool))):
            before, resets, positions = computed(
                jnp.asarray(ids), mask_or_none, id, jnp.int32(position)
            )
            expect = expected(ids, real, previous, position)
            assert before.tolist() == expect[0]
            assert resets.tolist() == expect[1]
            assert np.where(real, positions, 0).tolist() == expect[2]


@jax.jit
def counted(mask):
    return SequenceContext(mask=mask).positions_from(jnp.int32(3), TIME)


@FAST
@given(sequences())
def test_positions_without_documents_skip_padding(sequence):
    _, mask = sequence
    assert counted(mask)[mask].tolist() == list(range(3, 3 + mask.sum()))


def test_given_positions_are_taken():
    positions = jnp.arange(4)[::-1]
    context = SequenceContext(positions=positions)
    assert context.positions_from(jnp.int32(7), 4) is positions
    assert advance(start_cursor(), context, 4)[0].position == 4


@jax.jit
def chunks(ids, mask):
    """The cursor and the contexts' positions and resets of four chunks, one of them empty."""
    cursor, results = start_cursor(), []
    for part in (slice(0, 5), slice(5, 5), slice(5, 6), slice(6, TIME)):
        context = SequenceContext(segment_ids=ids[part], mask=mask[part])
        cursor, context = advance(cursor, context, len(ids[part]))
        results.append((context.positions, context.resets()))
    return cursor, [jnp.concatenate(parts) for parts in zip(*results, strict=True)]


@jax.jit
def steps(ids, mask):
    def step(cursor, inputs):
        id, real = inputs
        cursor, context = advance_one(cursor, SequenceContext(segment_ids=id, mask=real))
        return cursor, (context.positions, real & (id != context.previous_segment_id))

    return jax.lax.scan(step, start_cursor(), (ids, mask))


@FAST
@given(sequences())
def test_a_cursor_connects_chunks_and_steps(sequence):
    ids, mask = sequence
    *_, resets, positions, end = expected(ids, mask, -1, 0)
    for run in (chunks, steps):
        cursor, (got_positions, got_resets) = run(ids, mask)
        assert got_resets.tolist() == resets
        assert np.where(mask, got_positions, 0).tolist() == positions
        assert jax.tree.map(int, cursor) == end


def test_a_cursor_counts_without_a_context():
    cursor, context = advance(start_cursor(), None, 5)
    cursor, _ = advance_one(cursor, context=None)
    assert jax.tree.map(int, cursor) == (6, -1)
    assert context.over_time()["positions"].tolist() == list(range(5))


@jax.jit
def split_over_devices(ids, mask, cursor):
    def local(ids, mask, cursor):
        context = SequenceContext(segment_ids=ids, mask=mask, axis_name="time")
        end, context = advance(cursor, context, len(ids))
        before = context.previous_segment_ids()
        return jax.tree.map(lambda x: x[None], end), before, context.resets(), context.positions

    mesh = jax.make_mesh((4,), ("time",), axis_types=(AxisType.Auto,))
    specs = (P("time"), P("time"), P())
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("time"))(ids, mask, cursor)


@FAST
@given(sequences(), st.integers(0, 5), st.sampled_from([10, 99]))
def test_time_split_over_devices(sequence, position, previous):
    ids, mask = sequence
    cursor = Cursor(jnp.int32(position), jnp.int32(previous))
    end, *got = split_over_devices(ids, mask, cursor)
    before, resets, positions, expected_end = expected(ids, mask, previous, position)
    assert got[0].tolist() == before
    assert got[1].tolist() == resets
    assert np.where(mask, got[2], 0).tolist() == positions
    for device in range(4):
        assert jax.tree.map(lambda x, i=device: int(x[i]), end) == expected_end


def test_padding_is_blanked_without_a_trace_in_the_gradient():
    context = SequenceContext(mask=jnp.array([True, False]))
    x = jnp.array([[1.0], [jnp.nan]])
    y, gradient = jax.value_and_grad(lambda x: jnp.sum(context.blank_padding(x) ** 2))(x)
    assert y == 1
    assert gradient.tolist() == [[2.0], [0.0]]
    with pytest.raises(ValueError, match=r"`context.mask`.*shape \(2,\), for.*shape \(3, 1\)"):
        context.blank_padding(jnp.ones((3, 1)))


def test_a_mask_is_boolean():
    """Of whole numbers `~` turns both 0 and 1 into what counts as true."""
    for field in ("mask", "condition_mask"):
        message = f"`context.{field}` must be boolean.*int32"
        with pytest.raises(ValueError, match=message), without_type_checks():
            SequenceContext(**{field: jnp.asarray([1, 0])})


def test_forget():
    state = {"h": jnp.ones(3)}
    here = SequenceContext(segment_ids=jnp.int32(2), previous_segment_id=jnp.int32(2))
    assert here.forget(state)["h"].tolist() == [1, 1, 1]
    assert SequenceContext().forget(state) is state
    new = here.replace(previous_segment_id=jnp.int32(1))
    assert new.forget(state)["h"].tolist() == [0, 0, 0]


def test_no_positions_at_all():
    empty = SequenceContext(segment_ids=jnp.zeros(0, jnp.int32), mask=jnp.zeros(0, bool))
    cursor, context = advance(start_cursor(), empty, 0)
    assert cursor == start_cursor()
    assert (
        jax.jit(SequenceContext.resets)(context).shape
        == context.over_time()["positions"].shape
        == (0,)
    )


@pytest.mark.parametrize("ids", ([], [3], [3, 3, 1, 2, 2]))
def test_contiguous_documents(ids):
    check_segment_ids(np.array(ids, int))


def test_an_id_that_comes_back():
    ids = jnp.array([4, 4, 1, 4])
    with pytest.raises(ValueError, match="the id 4 comes back.*own id"):
        SequenceContext(segment_ids=ids)
    with pytest.raises(ValueError, match="the id 4 comes back.*own id"):
        SequenceContext(segment_ids=jnp.stack([jnp.arange(4), ids]))  # a batch
    mask = jnp.array([True, True, True, False])
    SequenceContext(segment_ids=ids, mask=mask)
    with pytest.raises(ValueError, match="the id 4"):
        SequenceContext(mask=mask).replace(segment_ids=ids[jnp.array([0, 2, 1, 0])])


@pytest.mark.parametrize("wrong", [-0.5, np.nan])
def test_time_that_runs_backwards(wrong):
    timesteps = jnp.array([0.0, wrong, 1.0])
    with pytest.raises(ValueError, match=f"must not be negative.*{wrong}.*differences"):
        SequenceContext(timesteps=timesteps)
    SequenceContext(timesteps=timesteps, mask=jnp.array([True, False, True]))
    jax.jit(lambda timesteps: SequenceContext(timesteps=timesteps).timesteps)(timesteps)

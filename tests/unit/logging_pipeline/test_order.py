"""What a reader is told next: each row once and in order, however the rows come; a hole only where nothing fills it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus.logging_pipeline.live.order import Gap, Order
from nimbus.logging_pipeline.rows import Place, ReadRow, Row, Source

ONE, TWO = Source(1, 7, 1), Source(1, 9, 1)
PATIENCE_S = 10.0


def rows(*seqs: int) -> list[Row]:
    return [Row(seq, 0, "stdout", "info", f"line {seq}") for seq in seqs]


def page(*seqs: int, source: Source = ONE) -> list[ReadRow]:
    return [ReadRow(source.machine_id, source.fence, row) for row in rows(*seqs)]


def seqs(told: list[ReadRow]) -> list[int]:
    return [read.row.seq for read in told]


def test_what_is_published_ahead_of_a_missing_row_waits_for_it_and_is_told_after_it() -> None:
    order = Order([], 100)

    assert seqs(order.take_published(ONE, rows(0, 1), 0)) == [0, 1]
    assert seqs(order.take_published(ONE, rows(4, 5), 1)) == []
    assert order.has_holes
    assert seqs(order.take_stored(page(2), 2, whole=True)) == [2]
    assert seqs(order.take_stored(page(3), 3, whole=True)) == [3, 4, 5]
    assert not order.has_holes


def test_a_row_that_comes_again_is_not_told_again() -> None:
    order = Order([Place(7, 1, 3)], 100)

    assert seqs(order.take_published(ONE, rows(2, 3, 4), 0)) == [4]
    assert seqs(order.take_stored(page(4, 5), 1, whole=True)) == [5]
    assert seqs(order.take_published(ONE, rows(4, 5, 6), 2)) == [6]


def test_a_hole_of_one_machine_holds_no_other_up() -> None:
    order = Order([], 100)
    order.take_published(ONE, rows(1), 0)

    assert seqs(order.take_published(TWO, rows(0, 1), 0)) == [0, 1]


def test_a_hole_is_told_only_after_the_patience_and_a_look_that_did_not_fill_it() -> None:
    order = Order([], 100)
    order.take_published(ONE, rows(0, 3), 0)

    order.take_stored([], 1, whole=True)
    assert order.give_up(1, PATIENCE_S) == []
    order.take_stored([], 11, whole=True)
    assert order.give_up(11, PATIENCE_S) == [Gap(7, 1, 2)]
    assert seqs(order.release_held()) == [3]
    assert not order.has_holes


def test_holes_among_rows_that_were_there_all_along_cost_the_patience_once() -> None:
    order, stored = Order([], 100), page(0, 2, 4, 6)
    assert seqs(order.take_stored(stored, 0, whole=True)) == [0]
    assert order.give_up(0, PATIENCE_S) == []

    told: list[object] = []
    while len(told) < 6:
        left = [read for read in stored if read.row.seq > order.places[0].seq]
        told += seqs(order.take_stored(left, 10, whole=True))
        told += order.give_up(10, PATIENCE_S)

    assert told == [Gap(7, 1, 1), 2, Gap(7, 1, 1), 4, Gap(7, 1, 1), 6]


def test_a_page_that_ends_before_a_machine_says_nothing_of_its_holes() -> None:
    order = Order([], 100)
    order.take_published(TWO, rows(0, 3), 0)

    order.take_stored(page(5, 6, source=ONE), 20, whole=False)
    assert order.give_up(20, PATIENCE_S) == []  # the table may have rows 1 and 2 behind the page's end
    order.take_stored(page(1, 2, source=TWO), 21, whole=True)
    assert [place.seq for place in order.places if place.machine_id == 9] == [3]


def test_a_row_that_was_published_and_never_stored_holds_nobody_for_ever() -> None:
    order = Order([], 0)
    order.take_published(ONE, rows(5), 0)
    assert order.is_full
    order.forget_held()

    order.take_stored([], 1, whole=True)
    assert order.has_holes
    order.take_stored([], 11, whole=True)
    assert order.give_up(11, PATIENCE_S) == []
    assert not order.has_holes


# --- any order of things --------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 30), st.integers(1, 6)),
    st.tuples(st.just("store"), st.integers(0, 30), st.integers(1, 6)),
    st.tuples(st.just("look"), st.integers(1, 8), st.just(0)),
    st.tuples(st.just("forget"), st.just(0), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60), st.integers(0, 6))
def test_whatever_comes_in_whatever_order_each_row_is_told_once_and_all_in_the_end(
    steps: list[tuple[str, int, int]], held_rows: int
) -> None:
    order, stored, told = Order([], held_rows), set[int](), list[int]()
    now = 0.0

    def look(limit: int) -> None:
        last = order.places[0].seq if order.places else -1
        found = sorted(seq for seq in stored if seq > last)
        whole = len(found) < limit
        told.extend(seqs(order.take_stored(page(*found[:limit]), now, whole=whole)))
        if whole:
            assert order.give_up(now, PATIENCE_S) == []  # time stands still: nothing is missing yet
            told.extend(seqs(order.release_held()))

    for what, first, count in steps:
        if what == "publish":
            told += seqs(order.take_published(ONE, rows(*range(first, first + count)), now))
            if order.is_full:
                order.forget_held()
        elif what == "store":
            stored |= set(range(first, first + count))
        elif what == "look":
            look(first)
        else:
            order.forget_held()
        assert told == list(range(len(told)))
    stored |= set(range(40))
    for _ in range(40):
        look(5)

    assert told == list(range(40))
    assert not order.has_holes

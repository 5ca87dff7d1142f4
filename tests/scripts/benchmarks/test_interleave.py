"""Rounds, ratios and tables."""

import pytest

from scripts.benchmarks.interleave import Row, compare, table, take_turns, timed


def test_contenders_take_turns_and_warm_up_does_not_count():
    order = []

    def work(name, speeds):
        return lambda: order.append(name) or next(speeds)

    speeds = {"ours": iter([1.0, 100.0, 90.0]), "one": iter([999.0, 50.0, 30.0])}
    ours, one = compare(take_turns({name: work(name, values) for name, values in speeds.items()}, rounds=2))
    turns = [tuple(order[i : i + 2]) for i in range(0, 6, 2)]
    assert all(set(turn) == {"ours", "one"} for turn in turns)
    assert (ours.slowest, ours.median, ours.fastest, ours.rounds) == (90, 95, 100, 2) and one.fastest == 50


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 1), (25.0, 2), (1000.0, 5)])
def test_no_round_begins_after_the_time_is_up(monkeypatch, seconds, rounds):
    clock = [0.0]
    monkeypatch.setattr("scripts.benchmarks.interleave.time.monotonic", lambda: clock[0])

    def work():
        clock[0] += 10
        return 1.0

    assert len(take_turns({"ours": work}, rounds=5, seconds=seconds)["ours"]) == rounds


def test_the_turns_of_a_round_are_taken_together():
    speeds = {"ours": iter([1.0, 4.0, 4.0, 2.0, 2.0]), "one": iter([1.0, 2.0, 6.0, 1.0, 1.0])}
    order = []
    works = {name: lambda name=name: order.append(name) or next(speeds[name]) for name in speeds}
    assert take_turns(works, rounds=2, parts=2) == {"ours": [4.0, 2.0], "one": [3.0, 1.0]}  # images / seconds
    turns = {tuple(order[i : i + 2]) for i in range(0, 10, 2)}
    assert turns == {("ours", "one"), ("one", "ours")}  # neither always follows the other


def test_ratios_are_to_the_fastest_peer_of_the_same_round():
    ours, one, other = compare({"ours": [100, 90], "one": [50, 30], "other": [25, 60]})
    assert (ours.lowest_ratio, ours.highest_ratio) == (pytest.approx(1.5), pytest.approx(2.0))
    assert one.highest_ratio == pytest.approx(1.0) and other.lowest_ratio == pytest.approx(0.5)


def test_the_products_alone_are_no_peer():
    ours, _, products = compare({"ours": [100], "one": [50], "matrix products alone": [150]})
    assert ours.ratio == 2 and products.ratio == 3


def test_without_peers_there_is_no_ratio():
    (ours,) = compare({"ours": [100, 90]})
    assert table([ours]).splitlines()[-1] == "| ours | 95.0 | 90.0 to 100.0 |  |  |"


def test_work_is_timed(monkeypatch):
    clock = iter([10.0, 10.5])
    monkeypatch.setattr("scripts.benchmarks.interleave.time.perf_counter", lambda: next(clock))
    assert timed(lambda: 100)() == 200


def test_a_row_of_the_table():
    row = Row("a", 1.0, 0.5, 2.0, 3, 1.5, 1.25, 1.75)
    assert table([row]).splitlines()[-1] == "| a | 1.0 | 0.5 to 2.0 | 1.50 | 1.25 to 1.75 |"

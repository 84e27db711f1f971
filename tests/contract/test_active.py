"""Since when schedules are active: changes, changes back, deploys in which both are followed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest

from celery_idem.ledger import LAPSE, REFRESH, entries
from celery_idem.ledger.database import Answer
from celery_idem.ledger.sql import SqlLedger
from tests.contract.stores import FIRST, NAMESPACE, Store
from tests.contract.together import in_processes, in_threads

OLD, NEW = ("daily", "f1"), ("daily", "f2")
#: Seconds after which a schedule that nobody follows was given up, if another one is followed.
LONG = 2 * LAPSE


def begin(store: Store, pair: tuple[str, str]) -> datetime:
    """A beat with this schedule starts; since when the schedule is active."""
    return store.ledger.activate(NAMESPACE, [pair])[pair]


def follow(store: Store, seconds: float, *pairs: tuple[str, str]) -> None:
    """So many seconds in which beats follow these schedules, and report it in time."""
    for _ in range(int(seconds / REFRESH)):
        store.let_pass(REFRESH)
        for pair in pairs:
            store.ledger.mark_seen(NAMESPACE, [pair])


def test_a_schedule_changed_and_changed_back_counts_as_new(store: Store) -> None:
    first = begin(store, OLD)
    follow(store, REFRESH, OLD)
    begin(store, NEW)
    follow(store, LONG, NEW)
    before = store.ledger.now()
    back = begin(store, OLD)
    assert back >= before > first
    follow(store, REFRESH, OLD)
    assert begin(store, OLD) == back


def test_the_same_after_a_deploy_in_which_both_were_followed(store: Store) -> None:
    begin(store, OLD)
    begin(store, NEW)
    follow(store, LONG, OLD, NEW)
    follow(store, LONG, NEW)
    before = store.ledger.now()
    assert begin(store, OLD) >= before
    # And in the deploy of the way back the other one is not touched.
    follow(store, LONG, OLD, NEW)
    assert begin(store, NEW) < before


def test_schedules_that_are_followed_side_by_side_stay_active(store: Store) -> None:
    """Beats of either version come and go in a deploy that takes its time."""
    since = {OLD: begin(store, OLD)}
    follow(store, LONG, OLD)
    since[NEW] = begin(store, NEW)
    for _ in range(5):
        follow(store, 2 * REFRESH, OLD, NEW)
        for pair in (OLD, NEW):
            assert begin(store, pair) == since[pair]
    for _ in range(5):
        store.let_pass(LAPSE * 0.9)
        store.ledger.mark_seen(NAMESPACE, [NEW])
        assert begin(store, OLD) == since[OLD]
    assert begin(store, NEW) == since[NEW]


def test_a_moment_of_another_schedule_is_no_change(store: Store) -> None:
    first = begin(store, OLD)
    store.let_pass(LAPSE / 2)
    begin(store, NEW)
    assert begin(store, OLD) == first


def test_a_schedule_that_nobody_followed_for_a_while_is_caught_up(store: Store) -> None:
    """All beats were down: what was missed then is not from before the entry."""
    first = begin(store, OLD)
    begin(store, ("hourly", "f2"))
    store.let_pass(86_400)
    begin(store, ("hourly", "f2"))
    assert begin(store, OLD) == first


def test_reports_make_no_schedule_new(store: Store) -> None:
    """A beat that was cut off, or stood still, goes on with what it follows."""
    first = begin(store, OLD)
    begin(store, NEW)
    follow(store, LONG, NEW)
    store.ledger.mark_seen(NAMESPACE, [OLD])
    assert begin(store, OLD) == first


def test_reports_about_what_is_not_known_change_nothing(store: Store) -> None:
    store.ledger.mark_seen(NAMESPACE, [])
    store.ledger.mark_seen(NAMESPACE, [OLD])
    before = store.ledger.now()
    assert begin(store, OLD) >= before
    store.ledger.mark_seen("another", [NEW])
    follow(store, LONG, NEW)
    assert begin(store, OLD) >= before


def test_other_entries_and_namespaces_make_no_schedule_new(store: Store) -> None:
    first = begin(store, OLD)
    store.let_pass(LAPSE * 2)
    store.ledger.activate(NAMESPACE, [("hourly", "f2"), ("Daily", "f2")])
    store.ledger.activate("another", [NEW])
    assert begin(store, OLD) == first


def test_a_custom_schedule_that_counts_as_new_has_no_agreed_slot(store: Store) -> None:
    begin(store, OLD)
    store.ledger.agree(NAMESPACE, *OLD, None, FIRST)
    begin(store, NEW)
    follow(store, LONG, NEW)
    begin(store, OLD)
    assert store.ledger.agreed_slot(NAMESPACE, *OLD) is None
    slot = FIRST + timedelta(days=2)
    assert store.ledger.agree(NAMESPACE, *OLD, None, slot) == slot


def test_many_schedules_changed_back_at_once(store: Store) -> None:
    old = [(f"entry {n}", "f1") for n in range(700)]
    store.ledger.activate(NAMESPACE, old)
    store.ledger.activate(NAMESPACE, [(name, "f2") for name, _ in old[::7]])
    store.let_pass(LAPSE * 2)
    store.ledger.mark_seen(NAMESPACE, [(name, "f2") for name, _ in old[::7]])
    before = store.ledger.now()
    found = store.ledger.activate(NAMESPACE, old)
    assert {pair for pair, since in found.items() if since >= before} == set(old[::7])


# -- beats at the same moment ---------------------------------------------------------------------


def given_up(store: Store) -> None:
    begin(store, OLD)
    begin(store, NEW)
    follow(store, LONG, NEW)


def test_beats_that_change_back_together_agree(store: Store) -> None:
    """Although the beats of the other version go on reporting."""
    for _ in range(5):
        given_up(store)
        before = store.ledger.now()
        done = threading.Event()

        def beat(number: int, done: threading.Event = done) -> list[datetime]:
            if number:
                answers = [begin(store, OLD) for _ in range(3)]
                done.set()
                return answers
            while not done.is_set():
                store.ledger.mark_seen(NAMESPACE, [NEW])
            return []

        answers = {since for found in in_threads(4, beat) for since in found}
        assert len(answers) == 1
        assert answers.pop() >= before
        store.clear()


def test_beats_of_two_versions_that_start_together_agree(store: Store) -> None:
    """After a time in which all were down: one version may be new, and stays as it was found."""
    for _ in range(5):
        given_up(store)
        store.let_pass(LAPSE * 2)
        before = store.ledger.now()
        found = in_threads(
            4, lambda number: [begin(store, (OLD, NEW)[number % 2]) for _ in range(3)]
        )
        for answers in (found[0] + found[2], found[1] + found[3]):
            assert len(set(answers)) == 1
        assert found[0][0] >= before
        store.clear()


class Interrupted(SqlLedger):
    """A ledger of a beat that is overtaken by something once it has read who was seen when."""

    between: Callable[[], object] | None = None

    def _run(self, statement: Any, parameters: Any = None) -> Answer:
        answer = super()._run(statement, parameters)
        if statement is entries.statements(self.database.dialect).last_seen and self.between:
            self.between()
        return answer


def test_a_beat_that_was_overtaken_makes_no_schedule_new_once_more(database: Store) -> None:
    given_up(database)
    others: list[datetime] = []

    def other() -> None:
        others.append(begin(database, OLD))
        database.tick()

    with closing(Interrupted(database.url)) as ledger:
        ledger.between = other
        assert ledger.activate(NAMESPACE, [OLD]) == {OLD: others[0]}


def test_a_report_that_comes_between_keeps_a_schedule(database: Store) -> None:
    first = begin(database, OLD)
    begin(database, NEW)
    follow(database, LONG, NEW)
    with closing(Interrupted(database.url)) as ledger:
        ledger.between = lambda: database.ledger.mark_seen(NAMESPACE, [OLD])
        assert ledger.activate(NAMESPACE, [OLD]) == {OLD: first}


def _begin(index: int, url: str) -> list[datetime]:
    ledger = SqlLedger(url)
    answers = [ledger.activate(NAMESPACE, [OLD])[OLD] for _ in range(3)]
    ledger.close()
    return answers


def test_beats_in_processes_that_change_back_together_agree(database: Store) -> None:
    given_up(database)
    before = database.ledger.now()
    answers = {since for found in in_processes(3, _begin, database.url) for since in found}
    assert len(answers) == 1
    assert answers.pop() >= before


@pytest.mark.slow
def test_many_beats_report_many_entries_at_once(store: Store) -> None:
    """In whatever order; no deadlock reaches a caller, and each is seen."""
    pairs = [(f"entry {n}", "f1") for n in range(600)]
    since = store.ledger.activate(NAMESPACE, pairs)
    for _ in range(3):
        store.let_pass(REFRESH)
        in_threads(
            4,
            lambda n: (
                store.ledger.mark_seen(NAMESPACE, Random(n).sample(pairs, len(pairs)))
                if n % 2
                else store.ledger.activate(NAMESPACE, Random(n).sample(pairs, len(pairs)))
            ),
        )
    store.ledger.activate(NAMESPACE, [(name, "f2") for name, _ in pairs])
    store.let_pass(LAPSE * 0.9)
    assert store.ledger.activate(NAMESPACE, pairs) == since


# -- when they were seen last ---------------------------------------------------------------------


def test_it_is_told_when_a_schedule_was_seen_last(store: Store) -> None:
    assert store.ledger.last_seen(NAMESPACE, [OLD, NEW]) == {}
    assert store.ledger.last_seen(NAMESPACE, []) == {}
    before = store.ledger.now()
    begin(store, OLD)
    seen = store.ledger.last_seen(NAMESPACE, [OLD, NEW])
    assert seen.keys() == {OLD}
    assert before <= seen[OLD] <= store.ledger.now()
    assert store.ledger.last_seen(NAMESPACE, [OLD]) == seen
    assert store.ledger.last_seen("another", [OLD]) == {}
    store.let_pass(REFRESH)
    store.ledger.mark_seen(NAMESPACE, [OLD])
    assert store.ledger.last_seen(NAMESPACE, [OLD])[OLD] > seen[OLD] - timedelta(seconds=REFRESH)

"""What beats agree on, and what the ledger tells: entries, tasks, history, counts, the clock."""

from __future__ import annotations

from datetime import timedelta

from celery_idem.keys import RunKey
from celery_idem.ledger import Owner
from celery_idem.ledger.rows import line_id
from celery_idem.run import RunState
from tests.contract.stores import FIRST, LONG, NAMESPACE, SHORT, Store, fresh


def test_an_entry_is_active_since_it_was_first_seen(store: Store) -> None:
    pairs = [("daily", "f1"), ("hourly", "f2")]
    before = store.ledger.now()
    first = store.ledger.activate(NAMESPACE, pairs)
    assert set(first) == set(pairs)
    assert all(before <= since <= store.ledger.now() for since in first.values())
    store.tick()
    assert store.ledger.activate(NAMESPACE, pairs) == first
    assert store.ledger.activate(NAMESPACE, pairs[:1]) == {pairs[0]: first[pairs[0]]}


def test_two_versions_of_a_schedule_do_not_silence_each_other(store: Store) -> None:
    old = store.ledger.activate(NAMESPACE, [("daily", "f1")])
    store.tick()
    new = store.ledger.activate(NAMESPACE, [("daily", "f2")])
    assert new["daily", "f2"] > old["daily", "f1"]
    assert store.ledger.activate(NAMESPACE, [("daily", "f1")]) == old


def test_entries_are_told_apart_exactly(store: Store) -> None:
    store.ledger.activate(NAMESPACE, [("daily", "f1")])
    store.tick()
    now = store.ledger.now()
    others = [("Daily", "f1"), ("daily ", "f1"), ("dàily", "f1"), ("d" * 300, "f1")]
    for pair, since in store.ledger.activate(NAMESPACE, others).items():
        assert since >= now, pair
    assert store.ledger.activate("another", [("daily", "f1")])["daily", "f1"] >= now


def test_many_entries_at_once(store: Store) -> None:
    pairs = {(f"entry {n}", f"f{n % 7}") for n in range(1100)}
    active = store.ledger.activate(NAMESPACE, pairs)
    assert set(active) == pairs
    assert store.ledger.activate(NAMESPACE, pairs) == active


def test_no_entries(store: Store) -> None:
    assert store.ledger.activate(NAMESPACE, []) == {}


def test_a_slot_is_agreed_by_compare_and_set(store: Store) -> None:
    one, two, three = (FIRST + timedelta(microseconds=n) for n in (1, 2, 3))
    store.ledger.activate(NAMESPACE, [("sun", "f1"), ("sun", "f2"), ("moon", "f1")])
    assert store.ledger.agreed_slot(NAMESPACE, "sun", "f1") is None
    assert store.ledger.agree(NAMESPACE, "sun", "f1", None, one) == one
    assert store.ledger.agree(NAMESPACE, "sun", "f1", None, two) == one
    assert store.ledger.agree(NAMESPACE, "sun", "f1", two, three) == one
    assert store.ledger.agree(NAMESPACE, "sun", "f1", one, two) == two
    assert store.ledger.agree(NAMESPACE, "sun", "f1", one, two) == two
    assert store.ledger.agree(NAMESPACE, "sun", "f1", one, three) == two
    assert store.ledger.agreed_slot(NAMESPACE, "sun", "f1") == two
    for other in (("sun", "f2"), ("moon", "f1")):
        assert store.ledger.agreed_slot(NAMESPACE, *other) is None
    assert store.ledger.agreed_slot("another", "sun", "f1") is None


def test_nothing_is_agreed_for_an_entry_that_is_not_active(store: Store) -> None:
    assert store.ledger.agree(NAMESPACE, "sun", "f1", None, FIRST) is None
    assert store.ledger.agreed_slot(NAMESPACE, "sun", "f1") is None


def test_tasks_that_claim_are_remembered(store: Store) -> None:
    store.ledger.record_tasks(NAMESPACE, ["shop.bill", "shop.remind"])
    store.ledger.record_tasks(NAMESPACE, ["shop.bill"])
    store.ledger.record_tasks("Shop", ["shop.other"])
    store.ledger.record_tasks(NAMESPACE, [])
    assert store.ledger.known_tasks(NAMESPACE) == {"shop:shop.bill", "shop:shop.remind"}
    assert store.ledger.known_tasks("Shop") == {"Shop:shop.other"}
    assert store.ledger.known_tasks("sho") == set()


def test_a_task_with_a_long_name_is_remembered(store: Store) -> None:
    names = ["t" * 300, "t" * 299 + "T"]
    store.ledger.record_tasks("n" * 64, names)
    assert len(store.ledger.known_tasks("n" * 64)) == 2


def test_the_history_of_a_run(store: Store) -> None:
    key = RunKey(fresh("run"))
    store.ledger.record("duplicate", key, task="shop.bill", task_id="t1", detail="is running")
    store.tick()
    store.ledger.record("refused", key)
    store.ledger.record("duplicate", RunKey(key.text, FIRST))
    first, second = store.ledger.history(key)
    assert (first.kind, first.key, first.task, first.task_id) == (
        "duplicate",
        key,
        "shop.bill",
        "t1",
    )
    assert first.detail == "is running"
    assert first.host and first.pid
    assert (second.kind, second.task, second.detail) == ("refused", None, None)
    assert first.at < second.at <= store.ledger.now()
    assert store.ledger.history(RunKey("shop:never")) == []


def test_counts(store: Store) -> None:
    assert store.ledger.counts() == {}
    for state in RunState:
        store.in_state(state)
    store.in_state(RunState.FAILED)
    key = store.in_state(RunState.SUCCEEDED)
    for _ in range(3):
        store.ledger.record("duplicate", key)
    expected = {state.label: 1 for state in RunState}
    assert store.ledger.counts() == expected | {"failed": 2, "succeeded": 2, "duplicate": 3}


def test_the_clock_is_utc_and_goes_on(store: Store) -> None:
    first = store.ledger.now()
    assert first.utcoffset() == timedelta(0)
    store.tick()
    assert store.ledger.now() > first


def test_beats_whose_lease_holds_are_seen(store: Store) -> None:
    store.lease()
    before = store.ledger.now()
    for namespace, host, seconds in (
        (NAMESPACE, "b", LONG),
        (NAMESPACE, "a", LONG),
        (NAMESPACE, "late", SHORT),
        ("another", "c", LONG),
        (None, "d", LONG),
    ):
        owner = Owner("beat", host, 7, "process", namespace)
        store.ledger.register(fresh("lease"), owner, seconds)
    assert [beat.host for beat in store.ledger.live_beats(NAMESPACE)] == ["a", "b", "late"]
    store.let_pass(SHORT)
    found = store.ledger.live_beats(NAMESPACE)
    assert [(beat.host, beat.pid) for beat in found] == [("a", 7), ("b", 7)]
    assert all(before <= beat.started_at <= store.ledger.now() for beat in found)
    assert store.ledger.live_beats("nobody") == []


def test_a_line_that_several_write_is_one(store: Store) -> None:
    key = RunKey.for_entry(NAMESPACE, "daily")
    for line in (line_id(FIRST, "this"), line_id(FIRST, "this"), line_id(FIRST, "that"), None):
        store.ledger.record("missed", key, detail="what", line=line)
    assert [line.kind for line in store.ledger.history(key)] == ["missed"] * 3

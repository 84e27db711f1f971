"""Entries that are paused and resumed: what is told of it, whoever asks."""

from __future__ import annotations

from celery_idem.ledger import Pause
from celery_idem.ledger.rows import entry_name
from tests.contract.stores import NAMESPACE, Store
from tests.contract.together import in_threads

DAILY = entry_name(NAMESPACE, "daily")


def test_an_entry_that_was_never_paused_has_no_pause(store: Store) -> None:
    assert store.ledger.pauses(NAMESPACE) == {}
    assert store.ledger.resume(NAMESPACE, "daily") is None
    assert store.ledger.pauses(NAMESPACE) == {}


def test_a_pause_lasts_until_the_entry_is_resumed(store: Store) -> None:
    before = store.ledger.now()
    pause = store.ledger.pause(NAMESPACE, "daily", by="ann@host", note="the bank is closed")
    assert pause == Pause(pause.paused_at, None, "ann@host", "the bank is closed")
    assert before <= pause.paused_at <= store.ledger.now()
    assert pause.lasts
    assert store.ledger.pauses(NAMESPACE) == {DAILY: pause}
    store.tick()
    ended = store.ledger.resume(NAMESPACE, "daily")
    assert ended is not None
    assert ended.resumed_at is not None
    assert ended == Pause(pause.paused_at, ended.resumed_at, "ann@host", "the bank is closed")
    assert pause.paused_at < ended.resumed_at <= store.ledger.now()
    assert not ended.lasts
    assert store.ledger.pauses(NAMESPACE) == {DAILY: ended}


def test_a_pause_that_lasts_is_not_changed_by_another(store: Store) -> None:
    first = store.ledger.pause(NAMESPACE, "daily", note="first")
    store.tick()
    assert store.ledger.pause(NAMESPACE, "daily", by="bob", note="second") == first


def test_a_resume_that_is_repeated_changes_nothing(store: Store) -> None:
    store.ledger.pause(NAMESPACE, "daily")
    ended = store.ledger.resume(NAMESPACE, "daily")
    store.tick()
    assert store.ledger.resume(NAMESPACE, "daily") == ended


def test_an_entry_may_be_paused_again(store: Store) -> None:
    first = store.ledger.pause(NAMESPACE, "daily", note="first")
    store.ledger.resume(NAMESPACE, "daily")
    store.tick()
    again = store.ledger.pause(NAMESPACE, "daily", by="bob", note="second")
    assert again.paused_at > first.paused_at
    assert (again.resumed_at, again.paused_by, again.note) == (None, "bob", "second")


def test_entries_and_namespaces_are_told_apart(store: Store) -> None:
    long = "x" * 300
    store.ledger.pause(NAMESPACE, "daily")
    store.ledger.pause(NAMESPACE, long)
    store.ledger.pause("another", "daily")
    assert store.ledger.resume(NAMESPACE, "Daily") is None
    assert store.ledger.pauses(NAMESPACE).keys() == {DAILY, entry_name(NAMESPACE, long)}
    store.ledger.resume("another", "daily")
    assert all(pause.lasts for pause in store.ledger.pauses(NAMESPACE).values())


def test_notes_of_any_kind(store: Store) -> None:
    pause = store.ledger.pause(NAMESPACE, "daily", note="NUL \0, half \ud800, 🦊 " + "x" * 20_000)
    assert pause.note is not None
    assert pause.note.endswith("characters)")


def test_an_entry_is_known_once_a_beat_has_followed_it(store: Store) -> None:
    assert not store.ledger.is_known_entry(NAMESPACE, "daily")
    store.ledger.activate(NAMESPACE, [("daily", "f1"), ("daily", "f2")])
    assert store.ledger.is_known_entry(NAMESPACE, "daily")
    assert not store.ledger.is_known_entry("another", "daily")


def test_of_many_that_pause_at_once_one_is_heard(store: Store) -> None:
    """All are told the same pause."""
    for _ in range(3):
        told = in_threads(4, lambda n: store.ledger.pause(NAMESPACE, "daily", note=str(n)))
        assert len(set(told)) == 1
        ended = in_threads(4, lambda n: store.ledger.resume(NAMESPACE, "daily"))
        assert len(set(ended)) == 1
        store.tick()

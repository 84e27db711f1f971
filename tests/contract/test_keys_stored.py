"""Keys and texts come back as they were given, and different keys are different runs."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from celery_idem.clock import UTC
from celery_idem.errors import InvalidRunKey
from celery_idem.keys import EPOCH, RunKey
from celery_idem.ledger import NewSlot, Retry
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import FIRST, NAMESPACE, Store, fresh

PAIRS = {
    "case": ("shop:Bill", "shop:bill"),
    "trailing space": ("shop:bill", "shop:bill "),
    "leading space": ("shop:bill", " shop:bill"),
    "accent": ("shop:résumé", "shop:resume"),
    "normal form": tuple(unicodedata.normalize(form, "shop:é") for form in ("NFC", "NFD")),
    "sharp s": ("shop:straße", "shop:strasse"),
    "Turkish i": ("shop:\N{LATIN SMALL LETTER DOTLESS I}", "shop:i"),
    "width": ("shop:\N{FULLWIDTH DIGIT ONE}", "shop:1"),
    "emoji": ("shop:😀", "shop:😁"),
    "line end": ("shop:bill", "shop:bill\n"),
    "last of 255": ("k" * 255, "k" * 254 + "K"),
    "last of 300": ("k" * 300, "k" * 299 + "K"),
    "last of 300 after 255 are the same": ("k" * 300, "k" * 299),
    "backslash": ("shop:a\\b", "shop:a\\\\b"),
    "wildcard": ("shop:%", "shop:_"),
    "quote": ("shop:'", "shop:''"),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_keys_that_differ_are_two_runs(store: Store, pair: tuple[str, str]) -> None:
    first, second = (RunKey(text) for text in pair)
    assert store.claim(first).outcome is ClaimOutcome.CLAIMED
    assert store.claim(second).outcome is ClaimOutcome.CLAIMED
    assert store.claim(first).outcome is ClaimOutcome.RUNNING
    for key in (first, second):
        row = store.row(key)
        assert row.key == key
        store.ledger.end(key, row.fence, RunState.SUCCEEDED)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_slots_whose_keys_differ_are_two(store: Store, pair: tuple[str, str]) -> None:
    slots = [NewSlot(RunKey(text, FIRST), NAMESPACE, text, "shop.bill") for text in pair]
    keys = {slot.key for slot in slots}
    assert len(keys) == 2
    assert store.ledger.insert_slots(slots, "batch") == keys
    assert store.ledger.insert_slots(slots, "other") == set()
    assert {store.row(key).entry for key in keys} == set(pair)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must not be empty"),
        ("shop:\0", "NUL"),
        ("shop:\ud800", "not valid Unicode"),
        ("k" * 10_001, "10001 bytes, 10000 are allowed"),
        (17, "must be a str, not int"),
        (b"shop:bill", "must be a str, not bytes"),
        (None, "must be a str, not NoneType"),
    ],
)
def test_what_cannot_be_a_key_is_refused(text: object, reason: str) -> None:
    with pytest.raises(InvalidRunKey, match=reason):
        RunKey(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "slot",
    [
        EPOCH,
        EPOCH - timedelta(microseconds=1),
        datetime(2026, 3, 29, 1, 30, 0, 1, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 30, 59, 999_999, tzinfo=UTC),
        datetime(2026, 10, 25, 2, 30, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        datetime(2040, 2, 29, 23, 59, 59, 500_000, tzinfo=UTC),
        datetime(9999, 12, 30, tzinfo=UTC),
    ],
    ids=str,
)
def test_slots_survive_to_the_microsecond(store: Store, slot: datetime) -> None:
    key = RunKey("shop:daily", slot)
    later = RunKey("shop:daily", slot + timedelta(microseconds=1))
    deadline = slot + timedelta(microseconds=7)
    slots = [NewSlot(k, NAMESPACE, "daily", "shop.bill", deadline=deadline) for k in (key, later)]
    assert store.ledger.insert_slots(slots, "batch") == {key, later}
    for expected in (key, later):
        row = store.row(expected)
        assert row.key == expected
        assert row.key.slot.utcoffset() == timedelta(0)
        assert (row.due_at, row.deadline) == (expected.slot, deadline.astimezone(UTC))
        assert store.claim(expected).fence == 1


NAUGHTY = "NUL \0, half a surrogate \udfff, quote ' \" \\ %s %(x)s :name, emoji 😀, line\nend "


def test_texts_of_others_never_make_a_statement_fail(store: Store) -> None:
    """A run whose end cannot be written would be running for ever."""
    key = RunKey(fresh("run"))
    request = replace(store.request(key), task=NAUGHTY, entry=NAUGHTY * 20, task_id=NAUGHTY * 20)
    fence = store.ledger.claim(request).fence
    assert store.ledger.give_back(key, fence, NAUGHTY, 60.0)
    fence = store.claim(key).fence
    store.ledger.record("duplicate", key, task=NAUGHTY, task_id=NAUGHTY * 20, detail=NAUGHTY)
    store.ledger.retry(key, fence, Retry(1, 0.0, NAUGHTY))
    fence = store.claim(key, retries=1).fence
    store.ledger.end(key, fence, RunState.FAILED, NAUGHTY)
    row = store.row(key)
    assert row.state is RunState.FAILED
    tail = NAUGHTY.partition("quote")[2]
    assert row.error is not None and row.error.endswith(tail)
    assert row.message is not None and row.message.endswith(tail)
    (line,) = store.ledger.history(key)
    assert line.detail is not None and line.detail.endswith(tail)


def test_a_huge_error_is_cut(store: Store) -> None:
    key, claim = store.owned()
    store.ledger.end(key, claim.fence, RunState.FAILED, "é" * 5_000_000)
    error = store.row(key).error
    assert error is not None
    assert error.startswith("éééé") and error.endswith("é ... (5000000 characters)")
    assert len(error) < 20_000


def test_a_large_message_is_kept_whole(store: Store) -> None:
    message = "[" + "1234567890," * 20_000 + "0]"
    key, claim = store.owned()
    store.ledger.retry(key, claim.fence, Retry(1, 0.0, message))
    assert store.row(key).message == message

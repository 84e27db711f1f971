"""Run keys: deterministic names, and how they travel in messages."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_idem.clock import UTC
from celery_idem.errors import InvalidHeader, InvalidRunKey
from celery_idem.keys import (
    EPOCH,
    HEADER_ENTRY,
    HEADER_KEY,
    HEADER_SIGNATURE,
    HEADER_SLOT,
    MAX_STORED_BYTES,
    RunKey,
    Stamp,
    from_iso,
    iso,
    shorten,
)
from celery_idem.policy import Overlap

SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=50
)
slots = st.datetimes(timezones=st.just(UTC))


class Nowhere(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, moment: datetime | None) -> None:
        return None

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> None:
        return None


# -- the text of a slot ---------------------------------------------------------------------------


@given(slots)
def test_a_slot_has_one_text_and_comes_back(slot: datetime) -> None:
    assert from_iso(iso(slot)) == slot


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    st.integers(-14 * 60, 14 * 60),
)
def test_the_text_does_not_depend_on_the_zone(slot: datetime, minutes: int) -> None:
    there = slot.astimezone(timezone(timedelta(minutes=minutes)))
    assert iso(there) == iso(slot)
    assert RunKey("x", there) == RunKey("x", slot)


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-29T01:30:00",
        "2026-03-29T01:30:00+00:00",
        "2026-03-29T01:30:00+02:00Z",
        "2026-03-29 01:30:00Z",
        "2026-03-29T01:30Z",
        "20260329T013000Z",
        "2026-W13-7T01:30:00Z",
        "2026-03-29T01:30:00.000000Z",
        "2026-03-29T01:30:00.100Z",
        "2026-03-29T01:30:00ZZ",
        "yesterdayZ",
        "Z",
        "",
    ],
)
def test_another_form_is_not_a_slot(text: str) -> None:
    with pytest.raises(ValueError, match=r"UTC|isoformat|not in the form"):
        from_iso(text)


# -- keys -----------------------------------------------------------------------------------------


def test_the_key_of_a_slot() -> None:
    key = RunKey.for_slot("shop", "daily bill", SLOT)
    assert str(key) == key.text == "shop:daily bill@2026-03-29T01:30:00Z"
    assert key.slot == SLOT


def test_the_key_of_a_message() -> None:
    key = RunKey.for_message("shop", "shop.bill", "b8a1")
    assert (key.text, key.slot) == ("shop:shop.bill[b8a1]", EPOCH)
    replaced = RunKey.for_message("shop", "shop.bill", "b8a1", nesting=2)
    assert replaced.text == "shop:shop.bill[b8a1/2]"


def test_the_task_id_is_the_same_for_all_copies_and_for_no_other_run() -> None:
    key = RunKey.for_slot("shop", "daily", SLOT)
    assert key.task_id == RunKey.for_slot("shop", "daily", SLOT).task_id
    # Two releases may run side by side: they must agree.
    assert key.task_id == "fe89f268-5165-52ef-bc1d-c45c2d2adf8a"
    others = [
        RunKey.for_slot("Shop", "daily", SLOT),
        RunKey.for_slot("shop", "daily", SLOT + timedelta(microseconds=1)),
        RunKey(key.text),
    ]
    assert len({key.task_id, *(other.task_id for other in others)}) == 4


@pytest.mark.parametrize("size", [254, 255])
def test_a_text_that_can_be_stored_is_kept(size: int) -> None:
    text = "é" * (size // 2) + "x" * (size % 2)
    assert len(text.encode()) == size
    assert RunKey(text).text == text


def test_a_longer_text_is_shortened_to_a_readable_beginning_and_a_digest() -> None:
    key = RunKey("shop:" + "long " * 60)
    assert key.text.startswith("shop:long long ")
    assert len(key.text.encode()) == MAX_STORED_BYTES
    assert key.text[-33] == "#"
    assert RunKey(key.text) == key


@given(texts, st.integers(0, 40), texts)
def test_texts_that_differ_have_keys_that_differ(text: str, times: int, other: str) -> None:
    one, two = text * times + text, text * times + other
    assert (RunKey(one) == RunKey(two)) == (one == two)
    assert len(RunKey(one).text.encode()) <= MAX_STORED_BYTES


@given(st.integers(0, 5))
def test_a_text_is_cut_between_characters(shift: int) -> None:
    text = "x" * shift + "😀" * 100
    short = shorten(text)
    assert short.partition("#")[0] == text[: len(short.partition("#")[0])]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "it must not be empty"),
        ("a\0b", "it must not contain a NUL character"),
        ("\ud800", "it is not valid Unicode: surrogates not allowed"),
        ("x" * 10_001, "it has 10001 bytes, 10000 are allowed"),
        ("é" * 5_001, "it has 10002 bytes, 10000 are allowed"),
        (None, "it must be a str, not NoneType"),
        (7, "it must be a str, not int"),
        (b"x", "it must be a str, not bytes"),
        (["x"], "it must be a str, not list"),
    ],
)
def test_what_cannot_be_a_key(value: Any, reason: str) -> None:
    makes: list[Callable[[], RunKey]] = [
        lambda: RunKey(value),
        lambda: RunKey.for_slot("shop", value, SLOT),
        lambda: RunKey.for_message("shop", "shop.bill", value),
    ]
    for make in makes:
        with pytest.raises(InvalidRunKey) as caught:
            make()
        assert caught.value.reason == reason
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        (datetime(2026, 3, 29), "has no time zone"),  # noqa: DTZ001
        (datetime(2026, 3, 29, tzinfo=Nowhere()), "has no time zone"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "within the years"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))), "within the years"),
    ],
    ids=str,
)
def test_what_cannot_be_a_slot(slot: Any, reason: str) -> None:
    with pytest.raises(InvalidRunKey, match=reason):
        RunKey("shop:x", slot)


def test_a_key_is_a_value() -> None:
    key = RunKey.for_slot("shop", "daily", SLOT)
    assert pickle.loads(pickle.dumps(key)) == key
    assert {key: 1}[RunKey.for_slot("shop", "daily", SLOT)] == 1
    assert sorted([RunKey("b"), RunKey("a", SLOT), RunKey("a")]) == [
        RunKey("a"),
        RunKey("a", SLOT),
        RunKey("b"),
    ]
    with pytest.raises(AttributeError):
        key.text = "other"  # type: ignore[misc]


# -- in messages ----------------------------------------------------------------------------------

KEY = RunKey.for_slot("shop", "daily", SLOT)
STAMP = Stamp(KEY, "daily")


def test_a_stamp_is_written_into_a_copy() -> None:
    headers = {"mine": 1}
    assert STAMP.write(headers, "shop.bill") == {
        "mine": 1,
        "idem_run_key": "shop:daily@2026-03-29T01:30:00Z",
        "idem_slot": "2026-03-29T01:30:00Z",
        "idem_entry": "daily",
    }
    assert headers == {"mine": 1}
    assert Stamp(KEY).write(None, "shop.bill").keys() == {HEADER_KEY, HEADER_SLOT}


@given(
    texts, slots, st.none() | texts, st.none() | st.text(min_size=1, max_size=9).filter(str.isascii)
)
def test_a_stamp_is_read_back(
    text: str, slot: datetime, entry: str | None, secret: str | None
) -> None:
    stamp = Stamp(RunKey(text, slot), entry)
    assert Stamp.read(stamp.write({}, "shop.bill", secret), "shop.bill", secret) == stamp


def test_a_message_without_a_stamp() -> None:
    for headers in (None, {}, {"mine": 1}, {HEADER_ENTRY: "daily"}):
        assert Stamp.read(headers, "shop.bill") is None
        assert Stamp.read(headers, "shop.bill", "secret") is None


def test_a_key_without_a_slot_belongs_to_none() -> None:
    assert Stamp.read({HEADER_KEY: "shop:x"}, "shop.bill") == Stamp(RunKey("shop:x"))


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (HEADER_KEY, None),
        (HEADER_KEY, ""),
        (HEADER_KEY, 7),
        (HEADER_KEY, "x" * 256),
        (HEADER_KEY, "a\0b"),
        (HEADER_KEY, "\ud800"),
        (HEADER_SLOT, "tomorrow"),
        (HEADER_SLOT, 1_774_747_800),
        (HEADER_SLOT, ["2026-03-29T01:30:00Z"]),
        (HEADER_SLOT, b"2026-03-29T01:30:00Z"),
        (HEADER_SLOT, "2026-03-29T01:30:00+02:00Z"),
        (HEADER_SLOT, "2026-02-30T01:30:00Z"),
        (HEADER_ENTRY, 7),
        (HEADER_ENTRY, ""),
        (HEADER_ENTRY, "\ud800"),
        (HEADER_ENTRY, "x" * 20_000),
    ],
)
def test_a_broken_header_is_named(header: str, value: object) -> None:
    headers = STAMP.write({}, "shop.bill") | {header: value}
    with pytest.raises(InvalidHeader) as caught:
        Stamp.read(headers, "shop.bill")
    assert caught.value.header == header
    assert header in str(caught.value) and len(str(caught.value)) < 400


def test_a_signature_holds_for_one_stamp_of_one_task() -> None:
    signed = STAMP.write({}, "shop.bill", "secret")
    assert Stamp.read(signed, "shop.bill", "secret") == STAMP
    assert Stamp.read(signed, "shop.bill") == STAMP
    forged: list[dict[str, Any]] = [
        signed | {HEADER_KEY: "shop:other@2026-03-29T01:30:00Z"},
        signed | {HEADER_SLOT: "2026-03-30T01:30:00Z"},
        signed | {HEADER_ENTRY: "other"},
        signed | {HEADER_SIGNATURE: "0" * 64},
        signed | {HEADER_SIGNATURE: None},
        signed | {HEADER_SIGNATURE: b"x"},
        signed | {HEADER_SIGNATURE: "\ud800é"},
        {name: value for name, value in signed.items() if name != HEADER_SIGNATURE},
        {name: value for name, value in signed.items() if name != HEADER_ENTRY},
    ]
    for headers in forged:
        with pytest.raises(InvalidHeader, match=r"idem_signing_key|idem_entry"):
            Stamp.read(headers, "shop.bill", "secret")
    for task, secret in (("shop.other", "secret"), ("shop.bill", "other")):
        with pytest.raises(InvalidHeader, match="not made with this app's idem_signing_key"):
            Stamp.read(signed, task, secret)


# -- what a failure does --------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [True, False])
def test_a_stamp_tells_whether_a_failure_pauses(asks: bool) -> None:
    stamp = Stamp(RunKey.for_entry("shop", "daily"), "daily", asks)
    headers = stamp.write({}, "shop.bill", "secret")
    assert Stamp.read(headers, "shop.bill", "secret") == stamp
    with pytest.raises(InvalidHeader, match="signature"):
        Stamp.read({**headers, "idem_pause_on_failure": not asks}, "shop.bill", "secret")
    with pytest.raises(InvalidHeader, match="idem_pause_on_failure = 'yes'"):
        Stamp.read({**headers, "idem_pause_on_failure": "yes"}, "shop.bill")


# -- what becomes of it if an earlier run goes on -------------------------------------------------


@pytest.mark.parametrize("overlap", Overlap)
def test_a_stamp_tells_what_becomes_of_an_overlap(overlap: Overlap) -> None:
    stamp = Stamp(RunKey.for_entry("shop", "daily"), "daily", overlap=overlap)
    headers = stamp.write({}, "shop.bill", "secret")
    assert Stamp.read(headers, "shop.bill", "secret") == stamp
    other = Overlap.SKIP if overlap is Overlap.ALLOW else Overlap.ALLOW
    with pytest.raises(InvalidHeader, match="signature"):
        Stamp.read({**headers, "idem_overlap": str(other)}, "shop.bill", "secret")
    impossible: list[Any] = ["wait", 1, None, []]
    for wrong in impossible:
        with pytest.raises(InvalidHeader, match="idem_overlap = "):
            Stamp.read({**headers, "idem_overlap": wrong}, "shop.bill")


def test_a_stamp_that_allows_an_overlap_has_no_header_for_it() -> None:
    """Workers of an earlier release check the signature of what they know."""
    assert "idem_overlap" not in Stamp(RunKey("shop:x"), "daily").write({}, "shop.bill")

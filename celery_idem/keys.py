"""The names of runs, and how they travel in messages.

Owns the canonical text of a run key, the message headers that carry it and their signature. Beats
and workers share nothing else: a scheduler writes the headers, a task reads them.
Must not know what a ledger, a lease or a schedule is.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b, sha256
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from celery_idem.clock import UTC
from celery_idem.errors import InvalidHeader, InvalidRunKey
from celery_idem.policy import Overlap

HEADER_KEY: Final = "idem_run_key"
HEADER_SLOT: Final = "idem_slot"
HEADER_ENTRY: Final = "idem_entry"
HEADER_START_BY: Final = "idem_start_by"
HEADER_PAUSE: Final = "idem_pause_on_failure"
HEADER_OVERLAP: Final = "idem_overlap"
HEADER_SIGNATURE: Final = "idem_signature"

#: All that a stamp consists of.
STAMP: Final = (
    HEADER_KEY,
    HEADER_SLOT,
    HEADER_ENTRY,
    HEADER_START_BY,
    HEADER_PAUSE,
    HEADER_OVERLAP,
    HEADER_SIGNATURE,
)

#: The slot of a run that belongs to no slot (an explicit key, or a message of its own): every
#: statement names key and slot, so that a table can be partitioned by slot.
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

#: A key is stored in this many bytes (the widest unique column that all databases index).
MAX_STORED_BYTES: Final = 255
#: A longer text is refused: it is data, not a name.
MAX_TEXT_BYTES: Final = 10_000
_DIGEST_BYTES: Final = 16


def iso(slot: datetime) -> str:
    """The one text form of a slot: ISO 8601 in UTC with ``Z``, microseconds only if there are any.

    >>> iso(datetime(2026, 3, 29, 1, 30, tzinfo=UTC))
    '2026-03-29T01:30:00Z'
    """
    return slot.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def from_iso(text: str) -> datetime:
    """The slot that `iso` wrote. Raises `ValueError` if the text is not such a form."""
    if not text.endswith("Z"):
        raise ValueError("not in UTC: it must end with 'Z'")
    slot = datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC)
    # Two texts of one instant would be two runs where the text is part of a key; and an offset
    # before the 'Z' has just been dropped.
    if iso(slot) != text:
        raise ValueError(f"not in the form {iso(slot)}")
    return slot


def check_text(value: object) -> str:
    """Return `value` if it can be a name, else raise `InvalidRunKey` that says why."""
    if not isinstance(value, str):
        raise InvalidRunKey(value, f"it must be a str, not {type(value).__name__}")
    if not value:
        raise InvalidRunKey(value, "it must not be empty")
    if "\0" in value:
        raise InvalidRunKey(value, "it must not contain a NUL character")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as exc:
        raise InvalidRunKey(value, f"it is not valid Unicode: {exc.reason}") from exc
    if size > MAX_TEXT_BYTES:
        raise InvalidRunKey(value, f"it has {size} bytes, {MAX_TEXT_BYTES} are allowed")
    return value


def shorten(text: str) -> str:
    """`text` itself if it can be stored, else its beginning and a digest of the whole.

    The readable part comes first so that logs and tables stay legible; two texts that differ
    anywhere have different digests.
    """
    data = text.encode()
    if len(data) <= MAX_STORED_BYTES:
        return text
    digest = blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
    room = MAX_STORED_BYTES - len(digest) - 1
    return data[:room].decode(errors="ignore") + "#" + digest


@dataclass(frozen=True, slots=True, order=True)
class RunKey:
    """The deterministic name of a run: a text, and the slot it belongs to.

    Attributes:
        text: canonical text, at most 255 bytes of UTF-8. Compared byte by byte: case, accents and
            trailing spaces count.
        slot: nominal instant in UTC, or `EPOCH` for a run that has none.
    """

    text: str
    slot: datetime = EPOCH

    def __post_init__(self) -> None:
        check_text(self.text)
        if len(self.text.encode()) > MAX_STORED_BYTES:
            object.__setattr__(self, "text", shorten(self.text))
        if self.slot.utcoffset() is None:
            raise InvalidRunKey(self.text, f"its slot {self.slot!r} has no time zone")
        try:
            object.__setattr__(self, "slot", self.slot.astimezone(UTC))
        except OverflowError:
            reason = f"its slot {self.slot!r} is not within the years 1 to 9999 of UTC"
            raise InvalidRunKey(self.text, reason) from None

    @classmethod
    def for_slot(cls, namespace: str, entry: str, slot: datetime) -> RunKey:
        """The key of the slot of a schedule entry: ``{namespace}:{entry}@{slot}``."""
        check_text(entry)
        return cls(f"{namespace}:{entry}@{iso(slot)}", slot)

    @classmethod
    def for_entry(cls, namespace: str, entry: str) -> RunKey:
        """What the history calls a schedule entry itself, rather than one of its slots."""
        check_text(entry)
        return cls(f"{namespace}:{entry}")

    @classmethod
    def for_message(cls, namespace: str, task: str, task_id: str, nesting: int = 0) -> RunKey:
        """The key of a message that carries none: ``{namespace}:{task}[{task id}]``.

        `nesting` is Celery's ``replaced_task_nesting``: `Task.replace` keeps the task id, and a
        task that replaces itself by itself would meet its own key.
        """
        check_text(task_id)
        return cls(f"{namespace}:{task}[{task_id}{f'/{nesting}' if nesting else ''}]")

    @classmethod
    def for_task(cls, namespace: str, task: str, text: str, slot: datetime = EPOCH) -> RunKey:
        """The key that a task's messages are given: ``{namespace}:{task}={text}``.

        Arguments:
            slot: the start of the period within which it names one run; by default it is for ever.
        """
        check_text(text)
        # Or a name with this character could be taken for a shorter one.
        name = task.replace("%", "%25").replace("=", "%3D")
        period = "" if slot == EPOCH else f"@{iso(slot)}"
        return cls(f"{namespace}:{name}={text}{period}", slot)

    def of_message(self, task_id: str) -> RunKey:
        """The name of the run of one of the messages that have this key, one after another."""
        return RunKey(f"{self.text}[{task_id}]", self.slot)

    @property
    def task_id(self) -> str:
        """The task id of all beat messages of this run.

        Equal for all copies, so that they share one result and one line in monitors.
        """
        return str(uuid5(NAMESPACE_URL, f"celery-idem:{self.text}@{iso(self.slot)}"))

    def part(self) -> float:
        """A number in [0, 1) that is as good as random for each run, and always the same."""
        digest = blake2b(f"{self.text}@{iso(self.slot)}".encode(), digest_size=6).digest()
        return int.from_bytes(digest, "big") / 2.0 ** (8 * len(digest))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a scheduler wrote into a message.

    Attributes:
        key: of the run.
        entry: the entry of the schedule that it came from.
        pause_on_failure: a failure of the run pauses the entry.
        start_by: instant from which on nothing is to begin by the message any more.
        overlap: what becomes of the run if an earlier one of its entry goes on.
    """

    key: RunKey
    entry: str | None = None
    pause_on_failure: bool = False
    start_by: datetime | None = None
    overlap: Overlap = Overlap.ALLOW

    def write(
        self, headers: Mapping[str, Any] | None, task: str, signing_key: str | None = None
    ) -> dict[str, Any]:
        """A copy of `headers` with the stamp in it; signed for `task` if there is a key."""
        stamped = dict(headers or {})
        stamped[HEADER_KEY] = self.key.text
        stamped[HEADER_SLOT] = iso(self.key.slot)
        if self.entry is not None:
            stamped[HEADER_ENTRY] = self.entry
        if self.pause_on_failure:
            stamped[HEADER_PAUSE] = True
        if self.start_by is not None:
            stamped[HEADER_START_BY] = iso(self.start_by)
        if self.overlap is not Overlap.ALLOW:
            stamped[HEADER_OVERLAP] = str(self.overlap)
        if signing_key:
            stamped[HEADER_SIGNATURE] = self._signature(task, signing_key)
        return stamped

    @classmethod
    def read(
        cls, headers: Mapping[str, Any] | None, task: str, signing_key: str | None = None
    ) -> Stamp | None:
        """The stamp in `headers`, or None if there is none.

        Raises:
            InvalidHeader: a header is broken, or `signing_key` is given and the signature is
                missing or was not made with it for this task.
        """
        headers = headers or {}
        if HEADER_KEY not in headers and HEADER_SLOT not in headers:
            return None
        stamp = cls(
            _read_key(headers),
            _read_entry(headers),
            _read_pause(headers),
            read_start_by(headers),
            _read_overlap(headers),
        )
        if signing_key:
            given = headers.get(HEADER_SIGNATURE)
            if not isinstance(given, str) or not hmac.compare_digest(
                given.encode(errors="replace"), stamp._signature(task, signing_key).encode()
            ):
                raise InvalidHeader(
                    HEADER_SIGNATURE, given, "it was not made with this app's idem_signing_key"
                )
        return stamp

    def _signature(self, task: str, signing_key: str) -> str:
        parts = [task, self.key.text, iso(self.key.slot), self.entry or ""]
        # With its name, as the parts that are absent leave no trace.
        if self.pause_on_failure:
            parts.append(HEADER_PAUSE)
        if self.start_by is not None:
            parts += [HEADER_START_BY, iso(self.start_by)]
        if self.overlap is not Overlap.ALLOW:
            parts += [HEADER_OVERLAP, str(self.overlap)]
        message = "\0".join(parts).encode(errors="surrogatepass")
        return hmac.new(signing_key.encode(), message, sha256).hexdigest()


def _read_key(headers: Mapping[str, Any]) -> RunKey:
    text, slot = headers.get(HEADER_KEY), headers.get(HEADER_SLOT)
    try:
        check_text(text)
    except InvalidRunKey as exc:
        raise InvalidHeader(HEADER_KEY, text, exc.reason) from exc
    assert isinstance(text, str)
    if len(text.encode()) > MAX_STORED_BYTES:
        raise InvalidHeader(HEADER_KEY, text, f"longer than {MAX_STORED_BYTES} bytes")
    return RunKey(text) if slot is None else RunKey(text, _read_instant(HEADER_SLOT, slot))


def _read_instant(header: str, text: Any) -> datetime:
    try:
        return from_iso(text)
    except (TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise InvalidHeader(header, text, f"not an ISO 8601 instant in UTC ({exc})") from exc


def _read_entry(headers: Mapping[str, Any]) -> str | None:
    entry = headers.get(HEADER_ENTRY)
    try:
        return None if entry is None else check_text(entry)
    except InvalidRunKey as exc:
        raise InvalidHeader(HEADER_ENTRY, entry, exc.reason) from exc


def _read_pause(headers: Mapping[str, Any]) -> bool:
    value = headers.get(HEADER_PAUSE, False)
    if not isinstance(value, bool):
        raise InvalidHeader(HEADER_PAUSE, value, "it must be True or False")
    return value


def _read_overlap(headers: Mapping[str, Any]) -> Overlap:
    value = headers.get(HEADER_OVERLAP, Overlap.ALLOW)
    try:
        return Overlap(value)
    except ValueError as exc:
        raise InvalidHeader(HEADER_OVERLAP, value, f"not one of {[*map(str, Overlap)]}") from exc


def read_start_by(headers: Mapping[str, Any]) -> datetime | None:
    """The instant from which on nothing is to begin by this message; None if there is none.

    Raises:
        InvalidHeader: it is no such instant.
    """
    text = headers.get(HEADER_START_BY)
    return None if text is None else _read_instant(HEADER_START_BY, text)

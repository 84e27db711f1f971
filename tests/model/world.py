"""The world of the model: the ledger's books, threads, beats, messages, and what is under way.

Owns its parts, and the form in which two worlds are the same: names are given anew when nothing
refers to them, fences are counted from the row's. So the number of worlds is finite, however often
a run is claimed, threads die or answers are lost. Must not know what may happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.model.books import GONE, OLD, Ask, Books, Call, Fence, Row, Seen, exchanged


class Thread(NamedTuple):
    """A worker thread: where it stands, and what it knows."""

    at: str = "idle"
    lease: str | None = None
    #: Its own estimate: its lease has not expired.
    trusts: bool = False
    #: The retry number of its message, and whether the broker calls it redelivered.
    number: int = 0
    again: bool = False
    expired: bool = False
    claim: str | None = None
    #: A try of its claim was not answered: its lease is not used for another run.
    spent: bool = False
    fence: Fence = Fence(0)
    #: How the body ends: a state, or the number of a retry.
    value: int = 0
    unsent: bool = False
    #: Its write has taken effect, and the answer was lost.
    done: bool = False
    seen: Seen | None = None
    #: The answers of the statements of a composite so far.
    answers: tuple[Any, ...] = ()


class Beat(NamedTuple):
    """A beat: where it stands in its round, and under which batch."""

    at: str = "idle"
    batch: str | None = None
    #: What it has won and not dealt with: (number, state).
    items: tuple[tuple[int, int], ...] = ()
    #: What it has to report.
    sent: bool = False
    closes: int | None = None
    reported: bool = False


class World(NamedTuple):
    books: Books = Books()
    threads: tuple[Thread, ...] = (Thread(), Thread())
    beats: tuple[Beat, ...] = ()
    #: Messages at the broker: (retry number, redelivered).
    queue: frozenset[tuple[int, bool]] = frozenset()
    #: The highest retry number of a message that was published, and that the ledger has awaited.
    published: int = 0
    awaited: int = 0
    #: Bodies that were started for this retry number, and not given back.
    starts: tuple[int, int] = (0, 0)
    #: A statement on its way whose sender has given up waiting.
    late: Call | None = None
    #: A transaction that holds the row: whose it is, and whether its COMMIT is on its way.
    open: tuple[int, str] | None = None
    #: Somebody has won the right to publish what is due, and it is not due again yet.
    won: bool = False
    #: Somebody has sent the callbacks.
    called: bool = False

    def put(self, number: int, thread: Thread) -> World:
        threads = (*self.threads[:number], thread, *self.threads[number + 1 :])
        return self._replace(threads=threads)

    def set_beat(self, number: int, beat: Beat) -> World:
        beats = (*self.beats[:number], beat, *self.beats[number + 1 :])
        return self._replace(beats=beats)

    def free_lease(self, number: int) -> str:
        """A name for a new lease of this thread."""
        used = set(self._leases()) | {lease for lease, _ in self.books.leases}
        return next(n for k in range(9) if (n := f"{number}.{k}") not in used)

    def free_claim(self, prefix: str) -> str:
        used = set(self._claims()) | {self.books.row.claim if self.books.row else None}
        return next(n for k in range(9) if (n := f"{prefix}.{k}") not in used)

    def _leases(self) -> Iterator[str | None]:
        if self.books.row:
            yield self.books.row.lease
        for thread in self.threads:
            yield thread.lease
            for known in (thread.seen, *thread.answers):
                if isinstance(known, Seen):
                    yield known.row.lease
        for part in self.late or ():
            yield getattr(part, "lease", None)
            if isinstance(part, Seen):
                yield part.row.lease

    def _claims(self) -> Iterator[str | None]:
        for thread in self.threads:
            yield thread.claim
        for beat in self.beats:
            yield beat.batch
        for part in self.late or ():
            yield getattr(part, "claim", None)


def settled(world: World) -> World:
    """The one world that stands for all that differ in names and numbers only."""
    row = world.books.row
    if row is not None and row.fence != 1:
        world, row = _counted(world, row)
    late = _late_lease(world)
    threads = tuple([_at_rest(it, row, world.books, late) for it in world.threads])
    if threads != world.threads:
        world = world._replace(threads=threads)
    if row is not None:
        row = _without_names(world, row)
        if row is not world.books.row:
            world = world._replace(books=Books(row, world.books.leases))
    used = set(world._leases())
    if any(lease not in used for lease, _ in world.books.leases):
        leases = frozenset(lease for lease in world.books.leases if lease[0] in used)
        world = world._replace(books=Books(row, leases))
    return world


def _counted(world: World, row: Row) -> tuple[World, Row]:
    """With fences counted from the row's."""
    now = row.fence

    def known(fence: int) -> int:
        return int(fence == now)

    threads = tuple(
        thread._replace(
            fence=Fence(known(thread.fence)),
            seen=exchanged(thread.seen, str, known),
            answers=exchanged(thread.answers, str, known),
        )
        for thread in world.threads
    )
    row = row._replace(fence=Fence(1))
    late = exchanged(world.late, str, known)
    books = Books(row, world.books.leases)
    return world._replace(threads=threads, late=late, books=books), row


def _without_names(world: World, row: Row) -> Row:
    """The row without names that nobody knows."""
    if row.claim != OLD and row.claim not in set(world._claims()):
        row = row._replace(claim=OLD)
    if row.lease and row.lease != GONE and not world.books.has(row.lease):
        known = (_late_lease(world), *(thread.lease for thread in world.threads))
        if row.lease not in known:
            row = row._replace(lease=GONE)
    return row


def _late_lease(world: World) -> str | None:
    if world.late is None:
        return None
    return next((part.lease for part in world.late if isinstance(part, Ask)), None)


def _at_rest(thread: Thread, row: Row | None, books: Books, late: str | None) -> Thread:
    """A thread that does nothing differs from a new one only if its lease owns the run."""
    if thread.at == "idle":
        if thread.lease is None or thread.lease not in (late, row and row.lease):
            return _NEW
        return Thread(lease=thread.lease, trusts=thread.trusts)
    if thread.answers:
        # Of a row that was read, only some is ever looked at.
        answers = tuple([_looked_at(each, thread, books) for each in thread.answers])
        if answers != thread.answers:
            thread = thread._replace(answers=answers)
    return thread


def _looked_at(answer: Any, thread: Thread, books: Books) -> Any:
    if not isinstance(answer, Seen):
        return answer
    row = answer.row
    claim = row.claim if row.claim == thread.claim else OLD
    lease = row.lease
    if lease and lease != GONE and not books.has(lease) and lease != thread.lease:
        lease = GONE
    return answer._replace(row=row._replace(claim=claim, lease=lease, emitted=0, message=False))


_NEW = Thread()

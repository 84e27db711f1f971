"""The world of one named lock: seats, leases, threads, and a statement on its way.

Owns its parts, and the form in which two worlds are the same: fences are the present one, an
earlier one or none, and leases are called after the thread that has them. Must not know what may
happen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from celery_idem.ledger import LockRequest, LockRow

NAME = "shop:stock"
#: Fences: never taken; of an earlier holder; as the row has it.
NEVER, OLD, NOW = 0, 1, 2


class Seat(NamedTuple):
    fence: int
    lease: str | None
    claim: str | None
    #: 1 while ``max_hold`` lasts, 0 when it is over.
    ends: int | None = None


class Holder(NamedTuple):
    """A thread: idle, taking, inside (with what it has taken), or leaving."""

    at: str = "idle"
    lease: str | None = None
    trusts: bool = False
    claim: str | None = None
    answers: tuple[Any, ...] = ()
    taken: tuple[int, int] | None = None
    #: ``max_hold`` is over, by its own clock.
    over: bool = False
    #: The fence that its statement has got, or none: an answer that is on its way.
    coming: tuple[int | None] | None = None


class Scene(NamedTuple):
    seats: tuple[Seat | None, ...]
    leases: frozenset[tuple[str, bool]] = frozenset()
    threads: tuple[Holder, ...] = ()
    late: tuple[Any, ...] | None = None

    def put(self, number: int, thread: Holder) -> Scene:
        return self._replace(threads=(*self.threads[:number], thread, *self.threads[number + 1 :]))

    def free_name(self, number: int) -> str:
        used = {thread.lease for thread in self.threads} | {name for name, _ in self.leases}
        used |= {seat.lease for seat in self.seats if seat}
        return next(n for k in range(1, 9) if (n := f"{number}.{k}") not in used)

    def free_claim(self, number: int) -> str:
        used = {thread.claim for thread in self.threads}
        used |= {seat.claim for seat in self.seats if seat}
        if self.late and isinstance(self.late[1], LockRequest):
            used.add(self.late[1].claim_id)
        return next(n for k in range(9) if (n := f"c{number}.{k}") not in used)


def has(scene: Scene, lease: str) -> bool:
    return (lease, True) in scene.leases or (lease, False) in scene.leases


def with_seat(scene: Scene, number: int, seat: Seat) -> Scene:
    return scene._replace(seats=(*scene.seats[:number], seat, *scene.seats[number + 1 :]))


def aged(scene: Scene, moved: set[int]) -> Scene:
    """What was the present fence of these seats is an old one now."""

    def row(it: Any) -> Any:
        if isinstance(it, LockRow) and it.seat in moved and it.fence == NOW:
            return replace(it, fence=OLD)
        return tuple(map(row, it)) if type(it) is tuple else it

    threads = []
    for thread in scene.threads:
        taken = thread.taken
        if taken is not None and taken[0] in moved:
            taken = (taken[0], OLD)
        coming = (OLD,) if thread.coming == (NOW,) else thread.coming
        threads.append(thread._replace(answers=row(thread.answers), taken=taken, coming=coming))
    late = scene.late
    if late is not None and late[0] == "release" and late[1] in moved:
        late = ("release", late[1], OLD)
    return scene._replace(threads=tuple(threads), late=row(late))


def too_late(scene: Scene, lease: str | None) -> Scene:
    """Who has not learned that it has the lock has counted from before it had it."""
    threads = tuple(
        it._replace(over=True) if it.at == "takes" and it.lease == lease else it
        for it in scene.threads
    )
    return scene._replace(threads=threads)


def settled(scene: Scene) -> Scene:
    """The one scene that stands for all that differ in names only."""
    known = {it.claim for it in scene.threads}
    if scene.late and scene.late[0] == "try_take":
        known.add(scene.late[1].claim_id)
    seats = tuple(
        seat._replace(claim=None) if seat and seat.claim not in known else seat
        for seat in scene.seats
    )
    names = _names(scene)
    leases = frozenset((names[name], alive) for name, alive in scene.leases if name in names)
    if all(old == new for old, new in names.items()):
        return Scene(seats, leases, scene.threads, scene.late)

    def renamed(it: Any) -> Any:
        if isinstance(it, LockRow):
            return replace(it, lease_id=names.get(it.lease_id or "", it.lease_id))
        if isinstance(it, LockRequest):
            return replace(it, lease_id=names[it.lease_id])
        if isinstance(it, Seat | Holder):
            it = it._replace(lease=names.get(it.lease or "", it.lease))
            return it._replace(answers=renamed(it.answers)) if isinstance(it, Holder) else it
        return tuple(map(renamed, it)) if type(it) is tuple else it

    return Scene(renamed(seats), leases, renamed(scene.threads), renamed(scene.late))


def _names(scene: Scene) -> dict[str, str]:
    """New names of leases: the one of each thread, and others in the order of the seats."""
    names = {it.lease: f"{n}.0" for n, it in enumerate(scene.threads) if it.lease}
    others = [seat.lease for seat in scene.seats if seat]
    if scene.late and scene.late[0] == "try_take":
        others.append(scene.late[1].lease_id)
    others += [
        row.lease_id
        for thread in scene.threads
        for answer in thread.answers
        if type(answer) is tuple
        for row in answer
    ]
    for lease in others:
        if lease and lease != "held":
            names.setdefault(lease, f"9.{len(names)}")
    return names

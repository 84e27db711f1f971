"""What threads do with a named lock, stepping the real verbs of a ledger.

Each statement of `Ledger.take` and of a release is one step; answers may be lost, statements arrive
late, threads die, leases end. Owns the steps, and what must hold: never one holder too many that
trusts its lock, and never another one's lock released. Must not know runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from celery_idem.ledger import LockRequest, LockRow, Taken
from celery_idem.ledger.memory import MemoryLedger
from tests.contract.stores import LONG
from tests.model.lock_ledger import LockLedger
from tests.model.lock_scene import NAME, NOW, Holder, Scene, has, settled, too_late, with_seat
from tests.model.replay import LOST


@dataclass(frozen=True)
class LockRules:
    """What a thread does with answers. Each can be left out, to see what it is for."""

    #: A block begins only if its lock is still trusted after the answer.
    checks_trust: bool = True
    #: Trust ends before the lease, or ``max_hold``, does.
    trusts_no_longer: bool = True
    #: Who does not learn an answer does not use that lease again.
    spends: bool = True
    #: A request is repeated as it was.
    repeats: bool = True


@dataclass(frozen=True)
class LockAlphabet:
    """What may happen in one search."""

    name: str
    threads: int = 2
    seats: int = 1
    hold: bool = False
    crashes: bool = True
    doubts: bool = True
    late: bool = False
    expiring: bool = True
    #: Time may pass between what a statement does and its answer.
    slow: bool = False


class Move(NamedTuple):
    label: str
    world: Scene
    broken: str | None = None
    luck: bool = False


class LockModel:
    """The steps of all actors, until the lock is free."""

    stuck = "the lock is never free again"

    def __init__(
        self,
        alphabet: LockAlphabet,
        ledger: type[MemoryLedger] = MemoryLedger,
        rules: LockRules | None = None,
    ) -> None:
        self.alphabet, self.rules = alphabet, rules or LockRules()
        self._ledger = LockLedger(ledger)

    def first(self) -> Scene:
        alphabet = self.alphabet
        return Scene((None,) * alphabet.seats, threads=(Holder(),) * alphabet.threads)

    def steps(self, scene: Scene) -> Iterator[Move]:
        for number in range(len(scene.threads)):
            yield from self._of_thread(scene, number)
            yield from self._of_lease(scene, number)
        yield from self._of_world(scene)

    def is_over(self, scene: Scene) -> bool:
        """Everybody is out, and nobody has to wait."""
        return all(thread.at == "idle" for thread in scene.threads) and all(
            seat is None or seat.lease is None or not has(scene, seat.lease) for seat in scene.seats
        )

    # -- threads ---------------------------------------------------------------------------------

    def _of_thread(self, scene: Scene, number: int) -> Iterator[Move]:
        me = scene.threads[number]
        who = f"thread {number}"
        if me.at == "idle":
            yield self._wants(scene, number, me)
        elif me.coming is not None:
            answered = scene.put(number, me._replace(coming=None))
            yield self._answered(f"{who} has its answer", answered, number, me.coming[0], None)
        elif me.at == "takes":
            yield from self._statement(scene, number, self._take_call(me))
        elif me.at == "in":
            if self.alphabet.hold and not me.over:
                over = scene.put(number, me._replace(over=True))
                yield _move(f"{who} has held it for max_hold", over)
            yield _move(f"{who} leaves", scene.put(number, me._replace(at="leaves")))
        elif me.at == "leaves":
            assert me.taken is not None
            yield from self._statement(scene, number, ("release", *me.taken))
        if self.alphabet.crashes and me != Holder():
            yield _move(f"{who} dies", scene.put(number, Holder()), luck=True)

    def _wants(self, scene: Scene, number: int, me: Holder) -> Move:
        lease = me.lease if me.trusts else None
        if lease is None:
            lease = scene.free_name(number)
            scene = scene._replace(leases=scene.leases | {(lease, True)})
        thread = Holder("takes", lease, True, scene.free_claim(number))
        return _move(f"thread {number} asks for the lock", scene.put(number, thread))

    def _replay(self, me: Holder, answers: tuple[Any, ...]) -> Any:
        return self._ledger.replay(self._request(me), answers)

    def _execute(self, scene: Scene, call: tuple[Any, ...]) -> tuple[Scene, Any, str | None]:
        after, answer = self._ledger.execute(scene, call)
        return after, answer, _broken(scene, after, call)

    def _request(self, me: Holder) -> LockRequest:
        hold = LONG if self.alphabet.hold else None
        return LockRequest(NAME, str(me.lease), str(me.claim), self.alphabet.seats, hold)

    def _take_call(self, me: Holder) -> tuple[Any, ...]:
        call = self._replay(me, me.answers)
        assert isinstance(call, tuple)
        return call

    def _statement(self, scene: Scene, number: int, call: tuple[Any, ...]) -> Iterator[Move]:
        label = f"thread {number}: {call[0]}"
        after, answer, broken = self._execute(scene, call)
        if self.alphabet.slow and call[0] == "try_take":
            me = after.threads[number]
            yield _move(label, after.put(number, me._replace(coming=(answer,))), broken)
        else:
            yield self._answered(label, after, number, answer, broken)
        changed = (after.seats, after.leases) != (scene.seats, scene.leases)
        if not self.alphabet.doubts:
            return
        yield self._answered(f"{label}, answer lost for good", after, number, LOST, broken)
        if changed:
            again = self._repeats(after, number)
            yield _move(f"{label}, answer lost", again, broken, luck=True)
        if self.alphabet.late and scene.late is None and changed:
            late = scene._replace(late=call)
            yield _move(f"{label}, on its way", self._repeats(late, number), luck=True)
            yield self._answered(f"{label}, on its way, given up", late, number, LOST, None)

    def _repeats(self, scene: Scene, number: int) -> Scene:
        me = scene.threads[number]
        if me.at != "takes" or self.rules.repeats:
            return scene
        return scene.put(number, me._replace(claim=scene.free_claim(number), answers=()))

    def _answered(
        self, label: str, scene: Scene, number: int, answer: Any, broken: str | None
    ) -> Move:
        me, luck = scene.threads[number], answer == LOST
        if me.at == "leaves":
            return _move(label, self._rests(scene, number, luck), broken, luck)
        if type(answer) is tuple:
            answer = tuple(_looked_at(row, me) for row in answer)
        answers = (*me.answers, answer)
        found = self._replay(me, answers)
        if isinstance(found, Taken):
            return self._enters(f"{label}, enters", scene, number, found, broken)
        if found is None or found == LOST:
            return _move(label, self._rests(scene, number, found == LOST), broken, luck)
        kept = () if found[0] == "read_seats" and answer != () and len(answers) > 1 else answers
        if found[0] == "read_seats" and me.answers and _is_bury(self._replay(me, me.answers)):
            kept = answers
        return _move(label, scene.put(number, me._replace(answers=kept)), broken, luck)

    def _enters(
        self, label: str, scene: Scene, number: int, taken: Taken, broken: str | None
    ) -> Move:
        me = scene.threads[number]
        thread = me._replace(at="in", claim=None, answers=(), taken=(taken.seat, taken.fence))
        if (me.over or not me.trusts) and self.rules.checks_trust:
            return _move(label, scene.put(number, thread._replace(at="leaves")), broken)
        scene = scene.put(number, thread)
        inside = [it for it in scene.threads if it.at == "in" and it.trusts and not it.over]
        inside += [thread] if thread.over or not thread.trusts else []
        if len(inside) > self.alphabet.seats:
            broken = broken or "one too many is inside"
        return _move(label, scene, broken)

    def _rests(self, scene: Scene, number: int, doubtful: bool) -> Scene:
        me = scene.threads[number]
        if doubtful and self.rules.spends:
            return scene.put(number, Holder())
        return scene.put(number, Holder(lease=me.lease, trusts=me.trusts))

    # -- leases and time -------------------------------------------------------------------------

    def _of_lease(self, scene: Scene, number: int) -> Iterator[Move]:
        me = scene.threads[number]
        if me.lease is None:
            return
        if me.trusts and self.alphabet.expiring:
            doubts = scene.put(number, me._replace(trusts=False))
            yield _move(f"thread {number} stops trusting its lease", doubts, luck=True)
        elif not me.trusts and (me.lease, True) in scene.leases:
            renewed = scene.put(number, me._replace(trusts=True))
            yield _move(f"thread {number} renews its lease", renewed)

    def _of_world(self, scene: Scene) -> Iterator[Move]:
        trusted = {it.lease for it in scene.threads if it.trusts}
        renewed = {it.lease for it in scene.threads}
        for lease, alive in sorted(scene.leases):
            if alive and not (lease in trusted and self.rules.trusts_no_longer):
                ends = scene._replace(leases=scene.leases - {(lease, True)} | {(lease, False)})
                yield _move(f"lease {lease} expires", ends, luck=lease in renewed)
            if not alive:
                after, _, broken = self._execute(scene, ("bury", lease))
                yield _move(f"lease {lease} is buried", after, broken)
        for number, seat in enumerate(scene.seats):
            if seat is not None and seat.ends == 1:
                inside = [it for it in scene.threads if it.at == "in" and it.lease == seat.lease]
                if all(it.over for it in inside) or not self.rules.trusts_no_longer:
                    after = with_seat(scene, number, seat._replace(ends=0))
                    yield _move("max_hold is over", too_late(after, seat.lease))
        if scene.late is not None:
            after, _, broken = self._execute(scene, scene.late)
            yield _move(f"a {scene.late[0]} arrives late", after._replace(late=None), broken)
            yield _move(f"a {scene.late[0]} never arrives", scene._replace(late=None))


def _looked_at(row: LockRow, me: Holder) -> LockRow:
    """Of a seat that was read, what matters to the thread that has read it."""
    if row.is_free:
        return LockRow(row.seat, row.fence)
    if row.claim_id == me.claim and row.lease_id == me.lease:
        return row
    expired = (row.lease_seconds or 0.0) <= 0
    return LockRow(
        row.seat, row.fence, row.lease_id if expired else "held", None, row.lease_seconds
    )


def _is_bury(call: Any) -> bool:
    return isinstance(call, tuple) and call[0] == "bury"


def _broken(before: Scene, after: Scene, call: tuple[Any, ...]) -> str | None:
    """The promise that a statement breaks, by what it made of the seats."""
    if call[0] == "release" and call[2] != NOW and before.seats != after.seats:
        return "somebody else's lock is released"
    return None


def _move(label: str, scene: Scene, broken: str | None = None, luck: bool = False) -> Move:
    return Move(label, settled(scene), broken, luck)

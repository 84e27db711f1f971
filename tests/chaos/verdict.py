"""What came of it, computed from what is found when the dust has settled.

Owns the arithmetic: lost, doubled, overlapping, recovered. Pure. Must not know how the facts were
found, nor how a verdict is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations

from tests.chaos.facts import Facts, Row, Seen
from tests.chaos.fleet import Died

Slot = tuple[str, datetime]


@dataclass
class Recovery:
    """From the kill of a body's process to the next begin of its run, in seconds."""

    what: str
    key: str
    seconds: float


@dataclass
class Verdict:
    """The findings of one part.

    Attributes:
        lost: slots that were due and have no effect.
        doubled_transactional: effects of one transactional run, beyond the first.
        doubled_killed: other effects beyond the first, where a kill fell between effect and finish.
        doubled_late: those of an owner that stood still or was cut off, and was refused.
        doubled_link: those of a link that was sent once more after a crash.
        unexplained: effects beyond the first that nothing of this explains.
        overlaps_trusted: pairs of bodies of one run that ran at one time, both trusting.
        overlaps: pairs of which one did not trust its lease any more.
        lateness: of each slot that was due, the seconds until its first body began, and its key.
    """

    due: list[Slot] = field(default_factory=list)
    bodies: int = 0
    effects: int = 0
    lost: list[Slot] = field(default_factory=list)
    lost_links: list[str] = field(default_factory=list)
    lost_steps: list[str] = field(default_factory=list)
    doubled_transactional: list[str] = field(default_factory=list)
    doubled_killed: list[str] = field(default_factory=list)
    doubled_late: list[str] = field(default_factory=list)
    doubled_link: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    overlaps_trusted: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    lateness: list[tuple[float, str]] = field(default_factory=list)
    history: dict[str, int] = field(default_factory=dict)

    def longest(self, *kinds: str) -> Recovery | None:
        """The longest recovery after a kill of these kinds."""
        found = [one for one in self.recoveries if one.what in kinds]
        return max(found, key=lambda one: one.seconds, default=None)


def judge(facts: Facts, kills: Sequence[Died], due: list[Slot], steps: Iterable[str]) -> Verdict:
    """The verdict; `steps` are the chains' links that were to have an effect."""
    verdict = Verdict(due=due, bodies=len(facts.bodies), effects=len(facts.effects))
    _find_lost(verdict, facts, steps)
    _find_doubled(verdict, facts, kills)
    _find_overlaps(verdict, facts, kills)
    verdict.recoveries = list(_recoveries(facts, kills))
    verdict.lateness = sorted(_lateness(facts, due), reverse=True)
    for kind in ("duplicate", "takeover", "refused", "repair"):
        verdict.history[kind] = len(facts.lines(kind))
    return verdict


def _lateness(facts: Facts, due: Sequence[Slot]) -> Iterator[tuple[float, str]]:
    slots = set(due)
    seen: set[str] = set()
    # In the order in which they began.
    for body in facts.bodies.values():
        run = facts.runs.get(body.key)
        if run is not None and body.key not in seen and (run["entry"], run["slot"]) in slots:
            seen.add(body.key)
            yield facts.booted_at + body.began_at - run["slot"].timestamp(), body.key


def _find_lost(verdict: Verdict, facts: Facts, steps: Iterable[str]) -> None:
    done = {(row["kind"], row["slot"]) for row in facts.effects}
    verdict.lost = [slot for slot in verdict.due if (slot[0], slot[1].isoformat()) not in done]
    made = {row["key"] for row in facts.effects if row["kind"] in ("link", "step")}
    before = {
        row["key"]
        for row in facts.effects
        if row["kind"] == "linked" and row["slot"] is not None
        if ("linked", datetime.fromisoformat(row["slot"])) in set(verdict.due)
    }
    verdict.lost_links = sorted(before - made)
    verdict.lost_steps = sorted(set(steps) - made)


def _find_doubled(verdict: Verdict, facts: Facts, kills: Sequence[Died]) -> None:
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in facts.effects:
        groups[row["kind"], row["key"]].append(row)
    for (kind, key), rows in groups.items():
        # The one that stands is that of the body whose end the ledger has.
        stands = next((row for row in rows if facts.bodies[row["body"]].finished), rows[-1])
        for row in rows:
            if row is not stands:
                _explain(verdict, facts, kills, kind, key, row)


def _explain(
    verdict: Verdict, facts: Facts, kills: Sequence[Died], kind: str, key: str, row: Row
) -> None:
    body = facts.bodies[row["body"]]
    if kind == "transactional":
        verdict.doubled_transactional.append(key)
    elif kind == "link" and facts.lines("repair", key):
        verdict.doubled_link.append(key)
    elif body.finished:
        verdict.unexplained.append(f"{key}, though fence {body.fence} has finished")
    elif _killed_at(body, kills, row["at"]) is not None:
        verdict.doubled_killed.append(key)
    elif facts.lines("refused", body.key):
        verdict.doubled_late.append(key)
    else:
        verdict.unexplained.append(f"{key}, fence {body.fence} of process {body.pid}")


def _find_overlaps(verdict: Verdict, facts: Facts, kills: Sequence[Died]) -> None:
    groups: defaultdict[str, list[Seen]] = defaultdict(list)
    for body in facts.bodies.values():
        groups[body.key].append(body)
    for key, bodies in groups.items():
        for one, other in combinations(bodies, 2):
            began = max(one.began_at, other.began_at)
            if began >= min(_stopped_at(one, kills), _stopped_at(other, kills)):
                continue
            text = f"{key}: fences {one.fence} and {other.fence}"
            if began < min(_trusted_to(one, kills), _trusted_to(other, kills)):
                verdict.overlaps_trusted.append(text)
            else:
                verdict.overlaps.append(text)


def _stopped_at(body: Seen, kills: Sequence[Died]) -> float:
    """When it was over, in whatever way."""
    if body.ended_at is not None:
        return body.ended_at
    killed_at = _killed_at(body, kills, body.began_at)
    return float("inf") if killed_at is None else killed_at


def _trusted_to(body: Seen, kills: Sequence[Died]) -> float:
    return min(_stopped_at(body, kills), body.trusted_until)


def _killed_at(body: Seen, kills: Sequence[Died], after: float) -> float | None:
    times = [kill.at for kill in kills if body.pid in kill.pids and kill.at >= after]
    return min(times, default=None)


def _recoveries(facts: Facts, kills: Sequence[Died]) -> Iterator[Recovery]:
    """Of slots: what is not of the schedule waits for its broker."""
    last: dict[int, Seen] = {body.pid: body for body in facts.bodies.values()}
    for kill in kills:
        for pid in kill.pids & last.keys():
            body = last[pid]
            if body.entry is None or body.finished or body.began_at > kill.at:
                continue
            for later in facts.bodies.values():
                if later.key != body.key or later.began_at <= kill.at:
                    continue
                if later.retries == body.retries:
                    last_kill = _with_parent(kill, kills, later.began_at)
                    yield Recovery(last_kill.what, body.key, later.began_at - last_kill.at)
                break


def _with_parent(kill: Died, kills: Sequence[Died], before: float) -> Died:
    """The kill of a child's worker, if that followed: nobody was left to notice the child's."""
    return next(
        (one for one in kills if kill.parent in one.pids and kill.at < one.at < before), kill
    )

"""The verdict finds what it is there for."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from tests.chaos.facts import Facts, Seen
from tests.chaos.fleet import Died
from tests.chaos.verdict import Verdict, judge
from tests.chaos.zombies import judge as judge_zombies

pytestmark = pytest.mark.unit

SLOT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
KEY = "chaos:plain@slot"
FIRST = Seen(
    id="1",
    task="chaos.plain",
    key=KEY,
    entry="plain",
    fence=1,
    retries=0,
    pid=11,
    began_at=100.0,
    trusted_until=102.5,
    ended_at=101.0,
    how="returned",
    finished=True,
)
#: Killed in mid-body, after its effect.
KILLED = replace(FIRST, ended_at=None, how=None, finished=False)
KILL = Died("worker", 100.8, frozenset({11}))
SECOND = replace(
    FIRST, id="2", fence=2, pid=22, began_at=104.0, trusted_until=106.5, ended_at=105.0
)


def effect(body: Seen, at: float, kind: str = "plain") -> dict[str, Any]:
    return {"kind": kind, "key": KEY, "slot": SLOT.isoformat(), "body": body.id, "at": at}


def verdict(
    bodies: list[Seen], effects: list[dict[str, Any]], *kills: Died, refused: bool = False
) -> Verdict:
    facts = Facts(bodies={body.id: body for body in bodies}, effects=effects)
    if refused:
        facts.history = {KEY: [{"kind": "refused"}]}
    return judge(facts, kills, [("plain", SLOT)], [])


def test_a_slot_with_one_effect_is_fine() -> None:
    found = verdict([FIRST], [effect(FIRST, 100.5)])
    assert (found.lost, found.unexplained, found.overlaps, found.overlaps_trusted) == ([],) * 4


def test_a_slot_without_an_effect_is_lost() -> None:
    due = [("plain", SLOT), ("plain", SLOT + timedelta(seconds=1))]
    facts = Facts(bodies={FIRST.id: FIRST}, effects=[effect(FIRST, 100.5)])
    assert judge(facts, [], due, ["chain0:0"]).lost == due[1:]
    assert judge(facts, [], due, ["chain0:0"]).lost_steps == ["chain0:0"]


def test_a_double_is_counted_by_its_cause() -> None:
    rows = [effect(FIRST, 100.5), effect(SECOND, 104.5)]
    assert verdict([KILLED, SECOND], rows, KILL).doubled_killed == [KEY]
    late = replace(FIRST, finished=False, ended_at=108.0)
    assert verdict([late, SECOND], rows, refused=True).doubled_late == [KEY]
    assert len(verdict([late, SECOND], rows).unexplained) == 1
    assert len(verdict([FIRST, SECOND], rows, KILL).unexplained) == 1, "both have finished"


def test_a_transactional_effect_may_never_be_doubled() -> None:
    rows = [effect(FIRST, 100.5, "transactional"), effect(SECOND, 104.5, "transactional")]
    assert verdict([KILLED, SECOND], rows, KILL).doubled_transactional == [KEY]


def test_bodies_that_both_trust_must_not_overlap() -> None:
    second = replace(SECOND, began_at=100.9)
    assert len(verdict([FIRST, second], []).overlaps_trusted) == 1
    stopped = replace(FIRST, ended_at=110.0)
    assert len(verdict([stopped, SECOND], []).overlaps) == 1, "its trust had ended before"
    assert verdict([KILLED, second], [], KILL).overlaps_trusted == [], "it was killed before"


def test_recovery_is_counted_from_the_kill() -> None:
    found = verdict([KILLED, SECOND], [], KILL).longest("worker")
    assert found is not None
    assert found.seconds == pytest.approx(3.2)
    assert verdict([FIRST, SECOND], [], KILL).longest("worker") is None, "it had finished"
    child = Died("child", 100.8, frozenset({11}), parent=10)
    assert verdict([KILLED, SECOND], [], child).longest("child") is not None
    worker = Died("worker", 103.0, frozenset({10, 12}))
    after = verdict([KILLED, SECOND], [], child, worker)
    assert after.longest("child") is None
    assert after.recoveries[0].seconds == pytest.approx(1.0), "from the kill of its worker"


@pytest.mark.parametrize("wrong", ["", "run", "refused", "result", "told", "effect"])
def test_a_zombie_is_judged_by_all_that_it_may_change(wrong: str) -> None:
    key = "chaos:chaos.zombie[1]"
    effects: list[dict[str, Any]] = [{"key": "1", "detail": "fence 2"}, {"key": key, "fence": 2}]
    if wrong == "told":
        effects.append({"key": "1", "detail": "fence 1"})
    if wrong == "effect":
        effects.append({"key": key, "fence": 1})
    facts = Facts(
        effects=effects,
        runs={key: {"state": 5 if wrong == "run" else 4, "fence": 2}},
        history={} if wrong == "refused" else {key: [{"kind": "refused"}]},
    )
    stored = "fence 1" if wrong == "result" else "fence 2"
    _, broken = judge_zombies(facts, {"1": "return"}, lambda _: stored)
    assert len(broken) == bool(wrong)


def test_a_slot_is_as_late_as_its_first_body() -> None:
    facts = Facts(bodies={"1": KILLED, "2": SECOND})
    facts.runs = {KEY: {"entry": "plain", "slot": SLOT}}
    facts.booted_at = SLOT.timestamp() - 98.5
    assert judge(facts, [KILL], [("plain", SLOT)], []).lateness == [(1.5, KEY)]
    assert judge(facts, [KILL], [("plain", SLOT + timedelta(seconds=1))], []).lateness == []

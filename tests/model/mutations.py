"""Every mutation of the model: one rule, or one guard, left out, and the search that finds it.

Owns the list. Not in it, as no history of these searches needs them: that `callbacks_sent` and
`keep_result` name final states (nobody calls them before the end), and that only a ``scheduled``
run becomes ``emitted`` (nobody asks for it in another state).
"""

from __future__ import annotations

from typing import NamedTuple

from celery_idem.ledger.memory import MemoryLedger
from tests.model import mutants as of_owners
from tests.model import mutants_of_beats as of_beats
from tests.model import mutants_of_leases as of_leases
from tests.model.rules import Rules

_BESIDE = "a body starts beside one that is trusted"
_REFUSED = "a rightful owner is refused"
_LATE = "a late owner's write was taken"
_NEVER = "the run can never end"
_TWICE = "two beats publish what was due once"


class Mutation(NamedTuple):
    """What is left out, in which search it is missed, and the promise that breaks."""

    name: str
    search: str
    broken: str
    ledger: type[MemoryLedger] = MemoryLedger
    rules: Rules = Rules()


def _rule(search: str, broken: str, **rule: bool) -> Mutation:
    return Mutation(next(iter(rule)), search, broken, rules=Rules(**rule))


def _guard(ledger: type[MemoryLedger], search: str, broken: str) -> Mutation:
    return Mutation(ledger.__name__, search, broken, ledger)


RULES = [
    _rule("claims", _BESIDE, checks_trust=False),
    _rule("claims", _BESIDE, trusts_no_longer=False),
    _rule("claims", _NEVER, abandons=False),
    _rule("repairs", _NEVER, abandons_repairs=False),
    _rule("taken back", _LATE, takes_back_its_own=False),
    _rule("late", _NEVER, spends=False),
    _rule("claims", _NEVER, repeats=False),
    _rule("retries", "a retry is executed that the ledger does not await", awaits_first=False),
    _rule("children", _REFUSED, reaps_first=False),
    _rule("claims", _BESIDE, keeps_bodies=False),
    _rule("claims", _NEVER, puts_back=False),
]

GUARDS = [
    _guard(of_owners.ClaimsTheRunning, "claims", "a claim that has ended comes to life again"),
    _guard(of_owners.ClaimsTheEnded, "claims", "a run that has ended as succeeded is changed"),
    _guard(of_owners.ClaimsTwiceByOneClaim, "late", "a claim that has ended comes to life again"),
    _guard(of_owners.ClaimsAnEarlierRetry, "rejects", "a run goes back to an earlier retry"),
    _guard(of_owners.ClaimsAnyRetryOfTheRetrying, "retries", "a run goes back to an earlier retry"),
    _guard(of_owners.SkipsTheRunning, "expiry", "a run moves as no run may"),
    _guard(of_owners.SkipsTheEnded, "expiry", "a run that has ended as succeeded is changed"),
    _guard(of_owners.ForgetsTheFence, "claims", _LATE),
    _guard(of_owners.CountsNoTakeover, "attempts", "a body is executed more often than it may be"),
    _guard(of_owners.TakesOverAnyLease, "claims", _BESIDE),
    _guard(of_owners.TakesOverAtAnyFence, "claims", _BESIDE),
    _guard(of_owners.TakesOverInAnyState, "claims", "a run that has ended as succeeded is changed"),
    _guard(of_owners.KillsAnyLease, "attempts", _REFUSED),
    _guard(of_owners.KillsAtAnyFence, "attempts", _REFUSED),
    _guard(of_owners.KillsInAnyState, "attempts", "a run that has ended as failed is changed"),
    _guard(of_owners.LetsAnEarlierRetryTakeOver, "rejects", "a run goes back to an earlier retry"),
    _guard(of_owners.NeverGivesUp, "attempts", "a body is executed more often than it may be"),
    _guard(of_owners.DoesNotKnowItsClaim, "claims", _NEVER),
    _guard(of_owners.EndsAtAnyFence, "claims", _LATE),
    _guard(of_owners.RetriesAtAnyFence, "late retries", _LATE),
    _guard(of_owners.GivesBackAtAnyFence, "attempts", _LATE),
    _guard(of_owners.EndsInAnyState, "verdicts", "a run that has ended as failed is changed"),
    _guard(
        of_owners.RetriesInAnyState,
        "late retries",
        "an owner's write was taken of a run that was not running",
    ),
    _guard(
        of_owners.GivesBackInAnyState,
        "late",
        "an owner's write was taken of a run that was not running",
    ),
    _guard(of_owners.TakesNoForLost, "claims", _REFUSED),
    _guard(of_owners.TakesNoForDone, "callbacks", "callbacks are sent of a run that has not ended"),
    _guard(
        of_owners.AsksWithoutWaiting,
        "transactions",
        "a transaction was committed, and its body not told",
    ),
    _guard(of_leases.ToldOfCallbacksAtAnyFence, "callbacks", _LATE),
    _guard(
        of_leases.RepairsAtAnyFence,
        "callbacks",
        "callbacks are sent beside a trusted one who sends them",
    ),
    _guard(
        of_leases.RepairsWhatIsDone,
        "callbacks",
        "callbacks are sent again that are recorded as sent",
    ),
    _guard(of_leases.RenewsTheBuried, "claims", _BESIDE),
    _guard(of_leases.RenewsTheExpired, "claims", "a lease that has expired is renewed"),
    _guard(of_leases.BuriesTheLiving, "claims", _BESIDE),
    _guard(of_leases.BuriesAllTheLiving, "claims", _BESIDE),
    _guard(of_leases.FailsOfAnyChild, "children", "a parent ends the run of somebody else's child"),
    _guard(
        of_leases.FailsOfAnyParent, "strangers", "a parent ends the run of somebody else's child"
    ),
    _guard(of_leases.FailsInAnyState, "verdicts", "a run that has ended as succeeded is changed"),
    _guard(of_beats.InsertsOver, "slots", "two beats publish one slot"),
    _guard(of_beats.InsertsForAll, "slots", "two beats publish one slot"),
    _guard(of_beats.AcquiresBeforeItIsDue, "slots", _TWICE),
    _guard(
        of_beats.AcquiresInAnyState,
        "slots",
        "a run is published as due that does not wait for a message",
    ),
    _guard(
        of_beats.AcquiresForAnother, "namespaces", "a beat looks after a run of another namespace"
    ),
    _guard(
        of_beats.RecoversFromTheLiving,
        "slots",
        "a run is taken for an orphan whose owner may live, or needs nothing",
    ),
    _guard(
        of_beats.RecoversInAnyState,
        "slots",
        "a run is taken for an orphan whose owner may live, or needs nothing",
    ),
    _guard(of_beats.RecoversAgainAtOnce, "slots", _TWICE),
    _guard(
        of_beats.RecoversWhatIsWithTheBroker,
        "ad hoc",
        "a run is acquired whose message is with the broker alone",
    ),
    _guard(
        of_beats.RecoversForAnother, "namespaces", "a beat looks after a run of another namespace"
    ),
    _guard(
        of_beats.ReportsForAnother, "slots", "a publish is counted that was counted, or another's"
    ),
    _guard(of_beats.ReportsTwice, "closing", "a publish is counted that was counted, or another's"),
    _guard(of_beats.ClosesForAnother, "closing", "a run is closed that has begun"),
    _guard(of_beats.ClosesTheRunning, "closing", "a run moves as no run may"),
]

MUTATIONS = RULES + GUARDS

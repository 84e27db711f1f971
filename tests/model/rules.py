"""What is searched: who takes part, what may happen, and which rules threads keep.

Owns the bounds of each search. Must not know how it is searched.
"""

from __future__ import annotations

from dataclasses import dataclass

from celery_idem.run import RunState


@dataclass(frozen=True)
class Rules:
    """What a thread does with answers. Each rule can be left out, to see what it is for."""

    #: A body begins only if its lease is still trusted after the claim's answer.
    checks_trust: bool = True
    #: Trust ends before the lease does.
    trusts_no_longer: bool = True
    #: Who does not learn the answer to a claim, or to a repair, never renews that lease again.
    abandons: bool = True
    abandons_repairs: bool = True
    #: Who takes a claim back that was not answered looks whether it is the claim that stands.
    takes_back_its_own: bool = True
    #: Whose claim had to be repeated does not use that lease for another run.
    spends: bool = True
    #: A statement whose answer was lost is repeated as it was.
    repeats: bool = True
    #: The ledger awaits a retry before its message is published.
    awaits_first: bool = True
    #: Who reaps a child waits for its death before it tells the ledger.
    reaps_first: bool = True
    #: Who exits keeps the leases of bodies that run.
    keeps_bodies: bool = True
    #: A redelivered message of a run that goes on, or waits for a retry, comes again.
    puts_back: bool = True


@dataclass(frozen=True)
class Alphabet:
    """What may happen in one search.

    Attributes:
        ends: how bodies may end: states, "retry", "reject" or "transaction".
        retries: the highest retry number.
        unsent: an end leaves callbacks to be sent.
        slots: beats insert the run, which the broker's messages are copies of. Otherwise it is an
            ad-hoc one: its first message is with the broker alone.
        beats: beats that look after the run; `stranger`: one more, of another namespace.
        strays: copies of a message that nobody will deliver again.
        again: the broker delivers a message again that a thread still has.
        crashes, doubts, late: threads die; answers are lost; a statement is executed after its
            sender has given up waiting for it.
        expires: messages expire before they are claimed.
        limits: bodies are killed at a time limit by their parent, which then tells the ledger.
        siblings: threads are children of one parent; otherwise of two, with equal process ids.
        undoes: a claim that was not answered is taken back.
        closes: beats may find that a waiting run is not to begin any more.
    """

    name: str
    ends: tuple[RunState | str, ...] = (RunState.SUCCEEDED,)
    retries: int = 0
    unsent: bool = False
    slots: bool = False
    beats: int = 0
    stranger: bool = False
    strays: bool = True
    again: bool = True
    crashes: bool = True
    doubts: bool = True
    late: bool = False
    #: Leases of threads that live may end.
    expiring: bool = True
    expires: bool = False
    limits: bool = False
    siblings: bool = True
    undoes: bool = False
    closes: bool = False
    #: Attempts are counted, and limited.
    counts: bool = False
    workers: int = 2

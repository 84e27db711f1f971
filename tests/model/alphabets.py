"""The searches: each follows every history of a few things that may happen together.

One search of everything at once would not end. Each of these leaves something out, which is named;
`DEEP` leaves out less, for a machine with an hour (``python -m tests.model --deep``).
"""

from __future__ import annotations

from dataclasses import replace

from celery_idem.run import RunState
from tests.model.rules import Alphabet

_S, _F = RunState.SUCCEEDED, RunState.FAILED

ALPHABETS = {
    alphabet.name: alphabet
    for alphabet in (
        # Ownership: two workers, copies of one message without end, deaths, lost answers.
        Alphabet("claims", strays=False),
        # A claim that was not answered is taken back: two workers, and in the searches below.
        Alphabet("taken back", strays=False, again=False, undoes=True),
        # The same with copies that the broker does not call redelivered.
        Alphabet("copies", again=False, doubts=False),
        # Attempts are counted: two owners may die. Answers arrive.
        Alphabet("attempts", ends=(_F, "reject"), strays=False, doubts=False, counts=True),
        # Retries: all that may happen to one worker, and two workers without beats.
        Alphabet("retries", ends=(_S, "retry"), retries=1, strays=False, again=False),
        Alphabet(
            *("rejects", (_S, "retry", "reject")), retries=1, counts=True, workers=1, undoes=True
        ),
        Alphabet(
            *("due", (_S, "retry")),
            retries=1,
            beats=1,
            workers=1,
            strays=False,
            again=False,
            doubts=False,
            crashes=False,
        ),
        # A statement arrives after its sender has given up; its thread keeps its lease.
        Alphabet(
            *("late", (_S, "reject")),
            late=True,
            undoes=True,
            beats=1,
            workers=1,
            strays=False,
            again=False,
            doubts=False,
            crashes=False,
            expiring=False,
        ),
        Alphabet(
            *("late retries", (_S, "retry")),
            retries=1,
            late=True,
            undoes=True,
            workers=1,
            strays=False,
            again=False,
            doubts=False,
        ),
        # What follows the end: two workers that live, one that may die.
        Alphabet("callbacks", unsent=True, strays=False, doubts=False),
        Alphabet("repairs", unsent=True, strays=False, workers=1),
        # The body ends its run by a COMMIT, which may hang.
        Alphabet("transactions", ends=("transaction", _F), strays=False, doubts=False),
        # Time limits: children of one parent, of two whose process ids are equal, late statements.
        Alphabet(
            *("children", (_S, "retry")),
            retries=1,
            limits=True,
            strays=False,
            again=False,
            doubts=False,
            crashes=False,
        ),
        Alphabet(
            *("strangers", (_S, "retry")),
            retries=1,
            limits=True,
            siblings=False,
            strays=False,
            again=False,
            doubts=False,
            crashes=False,
        ),
        Alphabet(
            *("verdicts", (_S, _F)),
            limits=True,
            late=True,
            undoes=True,
            workers=1,
            strays=False,
            doubts=False,
            crashes=False,
        ),
        # Messages that have expired.
        Alphabet("expiry", expires=True, strays=False, doubts=False),
        # Beats: two that compete, one that closes runs, one of another namespace.
        Alphabet(
            "slots",
            slots=True,
            beats=2,
            workers=1,
            strays=False,
            again=False,
            doubts=False,
            crashes=False,
        ),
        Alphabet(
            "closing",
            ends=(_S, "reject"),
            slots=True,
            closes=True,
            beats=1,
            workers=1,
            strays=False,
            undoes=True,
        ),
        Alphabet(
            "namespaces",
            slots=True,
            beats=1,
            stranger=True,
            workers=1,
            again=False,
            strays=False,
            doubts=False,
        ),
        Alphabet("ad hoc", beats=1, workers=1, strays=False, undoes=True),
        Alphabet("left callbacks", unsent=True, slots=True, beats=1, workers=1, strays=False),
    )
}

DEEP = [
    replace(ALPHABETS["claims"], strays=True),
    replace(ALPHABETS["claims"], undoes=True),
    replace(ALPHABETS["retries"], undoes=True),
    replace(ALPHABETS["copies"], again=True, doubts=True),
    replace(ALPHABETS["attempts"], doubts=True, strays=True),
    replace(ALPHABETS["retries"], again=True),
    replace(ALPHABETS["due"], again=True, crashes=True, doubts=True),
    replace(ALPHABETS["late"], crashes=True, expiring=True),
    # Another worker claims what was given back, and lets it go, before a statement arrives.
    replace(ALPHABETS["late"], beats=0, workers=2, strays=True),
    replace(ALPHABETS["callbacks"], doubts=True, crashes=True),
    replace(ALPHABETS["transactions"], doubts=True, strays=True),
    replace(ALPHABETS["children"], crashes=True, doubts=True),
    replace(ALPHABETS["slots"], doubts=True, crashes=True, again=True),
    replace(ALPHABETS["left callbacks"], beats=2),
]

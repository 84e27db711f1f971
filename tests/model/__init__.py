"""A model of the protocol: every history of a few threads, on the verbs of a real ledger.

What the package promises rests on short statements, each with guards, and on what threads do with
the answers. The searches here follow every history of them, one statement a step.

Real
    Each statement is that of the ledger in memory, which answers as the others do (`walk`, and
    `tests/contract/test_alike.py`). `Ledger.claim`, `end`, `retry`, `give_back`, `repair` and
    `was_committed` are stepped as they are, and so is `celery_idem.holding.unclaim` (`replay`).
Written anew
    What workers, beats and parents do with answers (`workers`, `bodies`, `beats`, `parents`), as
    `celery_idem.execution`, `reconcile` and `request` do it.
What may happen
    Copies of messages, redeliveries, lost messages; threads, beats and parents die; leases end;
    answers are lost, and the statement is repeated, or its thread gives up; statements arrive late;
    a COMMIT hangs. As often as it likes: worlds that differ in names and numbers only are one
    (`world`), so that their number is finite without a bound on claims, deaths or lost answers.
Promises
    Never two trusted bodies of a run; a run that has ended stays as it ended; late owners are
    refused, rightful ones never; a retry is executed when the ledger awaits it, and no body again
    that has ended in one; no more bodies of a retry number than attempts; what is due is published
    by one beat; callbacks that are recorded as sent are not sent again; and from every world the
    run can end without any luck, so that no message is lost for good.
Bounds
    One run, one slot; two workers or fewer, two beats or fewer, one retry, two attempts, one late
    statement. No search has all kinds of events at once: `alphabets` names what each leaves out.
    Time is not counted: trust may end at any step, before the lease does, and anything due may be
    due at once. That the claim loop ends after twenty rounds is not modelled. A parent that dies,
    or whose database is away for longer than the lease, before it has told of a child that was
    killed over an ad-hoc message, is left out: the message is acknowledged by then, and nothing
    ends the run but an operator.

`mutations` leaves out one rule or one guard after the other; each is found. ``python -m
tests.model`` prints the number of worlds of each search, with ``--deep`` of larger ones.
"""

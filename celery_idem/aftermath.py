"""What follows the end of a run: its callbacks, and its result for whoever waits.

Celery sends links, chains and chords and stores the result after the ledger has the end; a worker
may die in between. Owns what the ledger is told of this, and the question, asked when another copy
of the message arrives, whether a dead worker has left something undone. Must not know claims.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery import states
from celery.backends.base import DisabledBackend
from celery.signals import task_postrun
from kombu.exceptions import OperationalError
from kombu.utils.json import loads

from celery_idem import messages, signals
from celery_idem.clock import SYSTEM
from celery_idem.errors import LedgerError, ResultLost, RunDead
from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger, Unsent
from celery_idem.notes import note, noted
from celery_idem.run import RunRow, RunState

#: Characters of a result that the ledger keeps until callbacks are sent.
LONGEST_RESULT = 1_000_000
#: A worker that lives has stored a result by then.
LONGEST_STORE = timedelta(seconds=60)
#: Where a request notes what the ledger is to be told when its callbacks have been sent.
_NOTE = "unsent"


def has_callbacks(request: Any) -> bool:
    """True if Celery sends something after the success of this request."""
    return bool(request.callbacks or request.chain or request.chord)


def is_awaited(task: Any, request: Any) -> bool:
    """True if somebody may wait for what comes of this request: a result, or what follows it."""
    keeps = not isinstance(task.backend, DisabledBackend)
    stores = keeps and not (task.ignore_result or request.ignore_result)
    return bool(
        stores or request.is_eager or has_callbacks(request) or request.errbacks or request.group
    )


def unsent(result: Any) -> Unsent:
    """What the ledger keeps of a result until the callbacks have been sent."""
    try:
        text = messages.to_json(result)
    except ValueError:
        return Unsent(None)
    return Unsent(text if len(text) <= LONGEST_RESULT else None)


def tell_when_sent(
    request: Any, ledger: Ledger, key: RunKey, fence: int, *, stored: bool = False
) -> None:
    """Note that callbacks are sent after this request, if it succeeds.

    Arguments:
        stored: the ledger keeps the result for good.
    """
    # A copy, as Celery takes out of the list what it sends.
    note(request, _NOTE, (ledger, key, fence, list(request.chain or ()), stored))


@task_postrun.connect(weak=False)
def _tell(task: Any, state: str | None, retval: Any = None, **_: Any) -> None:
    """Celery has sent them; or the broker was away, and the request is no success."""
    told = noted(task.request, _NOTE)
    if told is None or state is None:
        return
    ledger, key, fence, chain, stored = told
    try:
        if isinstance(retval, OperationalError) and state != states.SUCCESS:
            # A beat publishes the message again, as if this worker had died.
            ledger.let_go(key, fence, message_of(task, chain))
        else:
            # Or nobody could send them: what the body has returned cannot be written.
            ledger.callbacks_sent(key, fence, stored=stored)
    except LedgerError as exc:
        signals.ledger_lost(f"Run {key}: its callbacks may be sent late, or once more", exc)


def message_of(
    task: Any, chain: list[Any] | None = None, headers: dict[str, Any] | None = None
) -> str | None:
    """JSON of the message that is being executed; None if JSON cannot tell it.

    Arguments:
        chain: what is left of its chain, where Celery has taken from that of the request.
        headers: in the place of its own.
    """
    signature = messages.signature_of(task, task.request, retries=task.request.retries)
    options = signature.options
    if chain is not None:
        options = {**options, "chain": chain or None}
    if headers is not None:
        options = {**options, "headers": headers}
    return messages.dump(task.name, signature.args, signature.kwargs, options)


# -- what a dead worker has left undone -----------------------------------------------------------


def is_left_undone(task: Any, request: Any, seen: RunRow, redelivered: bool) -> bool:
    """True if callbacks or the result of an ended run are missing. If its worker lives, not yet.

    Arguments:
        redelivered: the message was with a worker before, most probably with the one that ended
            the run. Any other copy may come when the result has been there and was deleted.
    """
    if seen.state is RunState.SKIPPED:
        return False
    return seen.callbacks_pending or (redelivered and _result_is_missing(task, request, seen))


def _result_is_missing(task: Any, request: Any, seen: RunRow) -> bool:
    backend = task.backend
    if isinstance(backend, DisabledBackend) or backend.as_uri().startswith("rpc"):
        return False
    if task.ignore_result or request.ignore_result or request.is_eager:
        return False
    if seen.state is RunState.SUCCEEDED and seen.error is not None:
        return False  # By an Ignore: the body has stored what there is, or something replaces it.
    if seen.task_id != request.id or seen.finished_at is None:
        return False
    since_end = SYSTEM.now() - seen.finished_at
    if (seen.lease_seconds or 0.0) > 0 and since_end > LONGEST_STORE:
        return False  # Its worker lives: it has been there, and somebody has deleted it.
    if backend.expires and since_end > timedelta(seconds=backend.expires):
        return False  # It may have been there.
    try:
        return backend.get_state(request.id) not in states.READY_STATES
    except Exception:
        return False  # The backend does not answer: nobody gets anything from it.


def made_up(ledger: Ledger, request: Any, seen: RunRow, fence: int, *, stored: bool = False) -> Any:
    """The result for the tracer, which stores it and sends the callbacks; or why there is none.

    Arguments:
        stored: the ledger keeps results for good.

    Raises:
        ResultLost: the run has ended, and nobody knows with what.
        RunDead: it was given up.
    """
    key = seen.key
    if seen.callbacks_pending and seen.result is not None:
        tell_when_sent(request, ledger, key, fence, stored=stored)
        return loads(seen.result)
    if seen.callbacks_pending:
        ledger.callbacks_sent(key, fence)
    if seen.state is RunState.DEAD:
        raise RunDead(key.text, str(seen.error))
    raise ResultLost(key.text, f"{seen.state.label} {seen.error or ''}".strip())

"""What happened, told once.

Owns one function per fact: it sends the signal and writes the only log line of that fact. A signal
is a `celery.utils.dispatch.Signal`; connect to it as to Celery's own. Must not decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery.utils.dispatch import Signal
from celery.utils.log import get_logger

from celery_idem.run import Run, RunRow

logger = get_logger("celery_idem")

#: A worker owns a run and starts its body. Arguments: run.
run_claimed = Signal(name="run_claimed", providing_args=["run"])
#: The run of a dead owner goes on here. Arguments: run.
run_taken_over = Signal(name="run_taken_over", providing_args=["run"])
#: The body succeeded and the ledger says so. Arguments: run.
run_succeeded = Signal(name="run_succeeded", providing_args=["run"])
#: The body asked for a retry. Arguments: run, retries.
run_retried = Signal(name="run_retried", providing_args=["run", "retries"])
#: The run failed for good. Arguments: key, error.
run_failed = Signal(name="run_failed", providing_args=["key", "error"])
#: The run is given up, as its owners have died. Arguments: key, reason.
run_dead = Signal(name="run_dead", providing_args=["key", "reason"])
#: A copy sends the callbacks, or stores the result, of an ended run for its dead worker.
#: Arguments: key.
run_repaired = Signal(name="run_repaired", providing_args=["key"])
#: A copy of a message was a no-op. Arguments: key, task_id, reason.
run_duplicate = Signal(name="run_duplicate", providing_args=["key", "task_id", "reason"])
#: A late owner's write was refused. Arguments: key, reason.
run_refused = Signal(name="run_refused", providing_args=["key", "reason"])
#: A message was published anew, as it cannot be handled now. Arguments: key, seconds, reason.
run_put_back = Signal(name="run_put_back", providing_args=["key", "seconds", "reason"])
#: A slot's message was published. Arguments: entry, key.
slot_emitted = Signal(name="slot_emitted", providing_args=["entry", "key"])
#: A run's message was published again. Arguments: row.
run_reemitted = Signal(name="run_reemitted", providing_args=["row"])
#: A run will not be executed. Arguments: key, reason.
run_skipped = Signal(name="run_skipped", providing_args=["key", "reason"])
#: An entry was paused. Arguments: entry, by, note.
entry_paused = Signal(name="entry_paused", providing_args=["entry", "by", "note"])


def claimed(task: Any, run: Run, taken_over: bool) -> None:
    """A body is about to start."""
    if taken_over:
        logger.warning(
            "Run %s is taken over from a dead owner (attempt %d, fence %d)",
            run.key,
            run.attempt,
            run.fence,
            extra={"action": "run_taken_over", "run_key": run.key.text},
        )
        run_taken_over.send(sender=task, run=run)
    else:
        logger.debug("Run %s is claimed (fence %d)", run.key, run.fence)
    run_claimed.send(sender=task, run=run)


def succeeded(task: Any, run: Run) -> None:
    """A body has ended, and the ledger has it."""
    logger.debug("Run %s succeeded", run.key)
    run_succeeded.send(sender=task, run=run)


def retried(task: Any, run: Run, retries: int) -> None:
    """A body asked for a retry, and the ledger has it."""
    logger.debug("Run %s waits for retry %d", run.key, retries)
    run_retried.send(sender=task, run=run, retries=retries)


def failed(task: Any, key: object, error: str) -> None:
    """A run failed for good; Celery logs the exception itself."""
    logger.debug("Run %s failed: %s", key, error)
    run_failed.send(sender=task, key=key, error=error)


def died(task: Any, key: object, reason: str) -> None:
    """A run is given up; Celery logs the failure itself."""
    logger.debug("Run %s is dead: %s", key, reason, extra={"action": "run_dead"})
    run_dead.send(sender=task, key=key, reason=reason)


def given_up(sender: Any, key: object, reason: str) -> None:
    """The same outside of Celery, where nobody else tells of it."""
    logger.error("Run %s is given up: %s", key, reason, extra={"action": "run_given_up"})
    run_dead.send(sender=sender, key=key, reason=reason)


def not_stored(task: Any, key: object, reason: str) -> None:
    """A result was to be kept, and could not be: duplicates get an error."""
    logger.warning(
        "Run %s: the result of %s is not stored: %s",
        key,
        task.name,
        reason,
        extra={"action": "result_not_stored", "run_key": str(key)},
    )


def repaired(task: Any, key: object) -> None:
    """What a worker that died after the end of a run has left undone is done."""
    logger.warning(
        "Run %s has ended, and its worker has died: callbacks and result are made up for",
        key,
        extra={"action": "run_repaired", "run_key": str(key)},
    )
    run_repaired.send(sender=task, key=key)


def duplicate(task: Any, key: object, task_id: str | None, reason: str) -> None:
    """A copy of a message was recognised: nothing is wrong."""
    logger.info(
        "Run %s: this copy of %s is a no-op: %s",
        key,
        task.name if task_id is None else f"{task.name}[{task_id}]",
        reason,
        extra={"action": "run_duplicate", "run_key": str(key)},
    )
    run_duplicate.send(sender=task, key=key, task_id=task_id, reason=reason)


def not_reserved(task: Any, key: object, reason: str) -> None:
    """A message is published without a record: its worker alone tells it from its duplicates."""
    logger.warning(
        "Run %s: the message of %s is published without being recorded first: %s",
        key,
        task.name,
        reason,
        extra={"action": "not_reserved", "run_key": str(key)},
    )


def publish_in_doubt(task: Any, key: object, error: BaseException) -> None:
    """The broker has not said whether it has a message; it is recorded, and not lost."""
    logger.warning(
        "Run %s: whether the message of %s was published is not known, a beat publishes it again "
        "unless a worker gets it: %r",
        key,
        task.name,
        error,
        extra={"action": "publish_in_doubt", "run_key": str(key)},
    )


def refused(task: Any, key: object, reason: str) -> None:
    """A write came too late, or a message cannot be trusted."""
    logger.warning(
        "Run %s: refused: %s", key, reason, extra={"action": "run_refused", "run_key": str(key)}
    )
    run_refused.send(sender=task, key=key, reason=reason)


def put_back(task: Any, key: object, seconds: float, reason: str) -> None:
    """A message could not be handled now, and comes again."""
    logger.warning(
        "Run %s: the message of %s is put back for %d s: %s",
        key,
        task.name,
        seconds,
        reason,
        extra={"action": "run_put_back", "run_key": str(key)},
    )
    run_put_back.send(sender=task, key=key, seconds=seconds, reason=reason)


def emitted(scheduler: Any, entry: Any, key: object) -> None:
    """A beat published the message of a slot."""
    logger.info(
        "Scheduler: Sending due task %s (%s) as %s",
        entry.name,
        entry.task,
        key,
        extra={"action": "slot_emitted", "run_key": str(key)},
    )
    slot_emitted.send(sender=scheduler, entry=entry.name, key=key)


def not_emitted(entry: str, key: object, error: BaseException) -> None:
    """A beat could not publish the message of a slot; it is made up when it can."""
    logger.error(
        "Entry %s: the message of %s could not be published, it will be tried again: %s",
        entry,
        key,
        error,
        extra={"action": "slot_not_emitted", "run_key": str(key)},
    )


def reemitted(sender: Any, row: RunRow) -> None:
    """A message was published again, as nobody has claimed its run, or its owner is dead."""
    logger.warning(
        "Run %s (%s) is in nobody's hands: its message is published again",
        row.key,
        row.state.label,
        extra={"action": "run_reemitted", "run_key": row.key.text},
    )
    run_reemitted.send(sender=sender, row=row)


def started_not_stored(sender: Any, task_id: str, error: BaseException) -> None:
    """The result backend did not take the state STARTED."""
    logger.warning(
        "Task %s[%s] begins, but its state STARTED is not stored: %s",
        sender.name,
        task_id,
        error,
        extra={"action": "started_not_stored"},
    )


def skipped(sender: Any, key: object, reason: str) -> None:
    """A run will never be executed."""
    logger.warning(
        "Run %s is skipped: %s", key, reason, extra={"action": "run_skipped", "run_key": str(key)}
    )
    run_skipped.send(sender=sender, key=key, reason=reason)


def entry_broken(entry: object, error: BaseException) -> None:
    """An entry of the schedule cannot be used; the others go on."""
    logger.error("Entry %s is left out: %s", entry, error, extra={"action": "entry_broken"})


def name_not_shared(entry: str) -> None:
    """Each beat has another name for an entry, and so other run keys."""
    logger.warning(
        "Entry %s has an address of this process in its name, so each beat calls it otherwise, and "
        "its slots are executed once for each beat: give it a name",
        entry,
        extra={"action": "name_not_shared"},
    )


def paused(sender: Any, entry: str, by: str, note: str) -> None:
    """Nothing of the entry is emitted until it is resumed."""
    logger.warning(
        "Entry %s is paused by %s: %s", entry, by, note, extra={"action": "entry_paused"}
    )
    entry_paused.send(sender=sender, entry=entry, by=by, note=note)


def clock_off(ahead: float) -> None:
    """A beat's clock is some seconds off; told once."""
    logger.warning(
        "Beat: its clock is %.1f s %s the database's: its slots come too early or too late",
        abs(ahead),
        _ahead_or_behind(ahead),
        extra={"action": "clock_off"},
    )


def clock_refused(ahead: float, tolerated: float) -> None:
    """A beat's clock is so far off that the beat does no good; told once."""
    logger.error(
        "Beat: its clock is %.1f s %s the database's, more than %g s: nothing is emitted from here "
        "until they agree",
        abs(ahead),
        _ahead_or_behind(ahead),
        tolerated,
        extra={"action": "clock_refused"},
    )


def clock_agrees() -> None:
    """The end of either."""
    logger.warning("Beat: its clock agrees with the database's", extra={"action": "clock_agrees"})


def _ahead_or_behind(ahead: float) -> str:
    return "ahead of" if ahead > 0 else "behind"


def ledger_lost(doing: str, error: BaseException) -> None:
    """The database does not answer; logged once until it answers again."""
    logger.error("%s: %s", doing, error, extra={"action": "ledger_lost"})


def ledger_found(doing: str) -> None:
    """The database answers again."""
    logger.warning("%s: the ledger answers again", doing, extra={"action": "ledger_found"})


def broker_lost(error: BaseException) -> None:
    """A beat cannot publish; logged once until it can."""
    logger.error(
        "Beat: the broker does not answer, slots are published when it does: %s",
        error,
        extra={"action": "broker_lost"},
    )


def broker_found() -> None:
    """The broker answers again."""
    logger.warning("Beat: the broker answers again", extra={"action": "broker_found"})


def round_failed(error: BaseException) -> None:
    """A beat met an error that nobody expects, and goes on."""
    logger.error(
        "Beat: a round has failed, the next one comes: %r",
        error,
        exc_info=error,
        extra={"action": "round_failed"},
    )


def unstamped(entry: object, error: BaseException) -> None:
    """A beat publishes an entry without a run key; logged once for each."""
    logger.warning(
        "Entry %s is published without a run key, and executed as often as beats publish it: %s",
        entry,
        error,
        extra={"action": "entry_unstamped"},
    )


def lease_lost(lease_id: str, reason: str) -> None:
    """What this lease owned may be taken over."""
    logger.warning("Lease %s is lost: %s", lease_id, reason, extra={"action": "lease_lost"})


def lock_lost(names: Sequence[str], reason: str) -> None:
    """A critical section has ended when somebody else may have been in it already."""
    logger.warning(
        "Lock %s was lost before it was released: %s",
        ", ".join(names),
        reason,
        extra={"action": "lock_lost"},
    )


def redis_lost(error: BaseException) -> None:
    """Redis does not answer; logged once until it does."""
    logger.warning(
        "Locks: Redis does not answer, the ledger alone decides: %s",
        error,
        extra={"action": "redis_lost"},
    )


def redis_found() -> None:
    """Redis answers again."""
    logger.warning("Locks: Redis answers again", extra={"action": "redis_found"})


def default_database(url: str) -> None:
    """No database was named: what holds on one host does not on two."""
    logger.warning(
        "The ledger is the file %s, as idem_database_url is not set: workers and beats on other "
        "hosts would each have a ledger of their own",
        url.removeprefix("sqlite:///"),
        extra={"action": "default_database"},
    )


def schedule_file_ignored(filename: str) -> None:
    """Somebody passed -s FILE, out of habit."""
    logger.warning(
        "The schedule file %s is ignored: the ledger knows what has run",
        filename,
        extra={"action": "schedule_file_ignored"},
    )

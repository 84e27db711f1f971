"""Messages of tasks: made again from a request, written down, published later.

Owns the form in which a message is kept in the ledger (JSON), and how one is published anew in the
form in which it came.
Must not know runs or the ledger.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.app.task import Task
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import task_received
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu.exceptions import OperationalError
from kombu.serialization import registry  # type: ignore[attr-defined]
from kombu.utils.json import dumps, loads

from celery_idem.clock import SYSTEM, UTC
from celery_idem.keys import from_iso, iso
from celery_idem.notes import note, noted

#: What of a publish's options is kept; the rest is of one moment (producer, connection, countdown).
# fmt: off
_KEPT = (
    "task_id", "root_id", "parent_id", "group_id", "group_index", "shadow", "chord", "chain",
    "link", "link_error", "expires", "soft_time_limit", "time_limit", "headers", "retries",
    "reply_to", "replaced_task_nesting", "origin", "priority", "queue", "exchange",
    "routing_key", "serializer", "compression", "ignore_result", "stamped_headers",
    "argsrepr", "kwargsrepr", "delivery_mode", "mandatory", "immediate",
)
# fmt: on

#: The shortest delay of some brokers.
SECOND = timedelta(seconds=1)

#: Marks a message that was put back: the broker does not call it redelivered, though it is.
HEADER_PUT_BACK = "idem_put_back"
#: The header in which RabbitMQ tells how often a message of a quorum queue came back to it.
RETURNS = "x-delivery-count"


def seconds_until(countdown: float | None, eta: datetime | str | None) -> float:
    """Seconds from now until a message with these options is due; at least 0.0."""
    if eta:
        instant = maybe_iso8601(eta)
        assert instant is not None
        due = maybe_make_aware(instant)
        return max(0.0, (due - SYSTEM.now()).total_seconds())
    return max(0.0, float(countdown or 0.0))


def instant(expires: Any, since: datetime) -> datetime | None:
    """When a message with this ``expires`` expires; its seconds count from `since`."""
    if expires is None:
        return None
    if isinstance(expires, datetime | str):
        moment = maybe_iso8601(expires)
        assert moment is not None
        # Celery, too, reads a time without a zone as UTC.
        return maybe_make_aware(moment).astimezone(UTC)
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
    return since + timedelta(seconds=seconds)


def dump(
    task: str, args: Any, kwargs: Any, options: Mapping[str, Any], eta: datetime | None = None
) -> str | None:
    """The message as JSON; None if it holds something that JSON cannot tell.

    Arguments:
        eta: for all copies of the message; that of `options` is for the first one.
    """
    kept = {name: options[name] for name in _KEPT if options.get(name) is not None}
    stamps = {name: options.get(name) for name in options.get("stamped_headers") or ()}
    message = {
        "task": task,
        "args": list(args or ()),
        "kwargs": dict(kwargs or {}),
        "options": kept | stamps,
        **({"eta": iso(eta)} if eta else {}),
    }
    try:
        text = to_json(message)
    except ValueError:
        return None
    is_json = kept.get("serializer", "json") == "json"
    # Others may come out of JSON as something else: a tuple is a list there, a key a text.
    is_told = is_json or arguments(text) == (message["args"], message["kwargs"])
    return text if is_told else None


def to_json(value: Any) -> str:
    """`value` as Celery's JSON.

    Raises:
        ValueError: JSON cannot tell it.
    """
    try:
        return dumps(value)
    except SoftTimeLimitExceeded:
        raise
    except Exception as exc:  # Also of what is nested too deeply, or what its own methods raise.
        raise ValueError(str(exc)) from exc


def arguments(message: str) -> tuple[list[Any], dict[str, Any]]:
    """Those of what `dump` has written."""
    content = loads(message)
    return content["args"], content["kwargs"]


def start_at(eta: datetime | None, now: datetime) -> dict[str, datetime]:
    """The option ``eta``, unless it is near: a broker's native delay takes no fractions."""
    return {} if eta is None or eta - now < SECOND else {"eta": eta}


def publish(app: Celery, message: str, now: datetime | None = None, **options: Any) -> Any:
    """Publish what `dump` has written."""
    content = loads(message)
    eta = from_iso(content["eta"]) if "eta" in content else None
    options = {
        **content["options"],
        "add_to_parent": False,
        **start_at(eta, now or SYSTEM.now()),
        **options,
    }
    task = app.tasks.get(content["task"])
    if task is not None:
        # With the task's own options, as at its first publish.
        return task.apply_async(content["args"], content["kwargs"], **options)
    return app.send_task(content["task"], content["args"], content["kwargs"], **options)


@task_received.connect
def _tell_form(sender: Any, request: Any, **_: Any) -> None:
    """In the worker's main process: what the tracer's request lacks, put where AMQP has it."""
    if getattr(request.task, "idem_claims", False):
        told = request.request_dict
        # Taken out of the headers: those go with a message that is published anew.
        own = {"content_type": request.content_type, RETURNS: told.pop(RETURNS, 0)}
        told["properties"] = {**(told["properties"] or {}), **own}


def returns(request: Any) -> int:
    """How often a quorum queue has had the message of `request` back; 0 where it is not counted."""
    return int((request.properties or {}).get(RETURNS) or 0)


def times_put_back(request: Any) -> int:
    """How often the message of `request` was put back as its run had an owner.

    At least 1 if it was put back at all.
    """
    told = (request.headers or {}).get(HEADER_PUT_BACK)
    # Whatever else a sender may have written there, it was not counted.
    return int(told) if isinstance(told, int) else bool(told)


#: Of these nothing can be changed in place.
_SIMPLE = (str, bytes, int, float, type(None), datetime)
#: Where a request keeps the arguments of its message.
_NOTE = "arguments"


@contextmanager
def _whatever_else_fails() -> Iterator[None]:
    """What cannot be copied is what the body leaves of it. A time limit interrupts all the same."""
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        return


def keep_arguments(request: Any) -> None:
    """What the body does to its arguments is not done to its message, should that come again."""
    # Pickle's may be of any kind, and copying them may do anything. Others are of simple kinds, of
    # which pickle, if nobody needs the copy, takes a tenth of the time of copying.
    if request.is_eager or form(request).get("serializer", "pickle") == "pickle":
        return
    values = (*(request.args or ()), *(request.kwargs or {}).values())
    if not all(isinstance(value, _SIMPLE) for value in values):
        with _whatever_else_fails():
            note(request, _NOTE, pickle.dumps((request.args, request.kwargs)))


def _arguments_of(request: Any) -> dict[str, Any]:
    """The arguments of the message of `request`, for `signature_from_request`."""
    pickled = noted(request, _NOTE)
    if pickled is None:
        return {}
    with _whatever_else_fails():
        args, kwargs = pickle.loads(pickled)
        return {"args": args, "kwargs": kwargs}
    return {}


def signature_of(task: Task[Any, Any], request: Any, **options: Any) -> Any:
    """The message of `request`, to be published once more, with these options in the place of its.

    Links, chains and chords are kept, as by a retry.
    """
    return task.signature_from_request(request, **_arguments_of(request), **options)


def form(request: Any) -> dict[str, Any]:
    """The options ``serializer`` and ``compression`` with which the message of `request` came.

    Absent where they are not known: the task's own hold then.
    """
    content_type = (request.properties or {}).get("content_type")
    options = {
        "serializer": registry.type_to_name.get(content_type),
        "compression": getattr(request, "compression", None),
    }
    return {name: value for name, value in options.items() if value}


def root_of(exc: BaseException) -> BaseException:
    """What kombu's `OperationalError`, its name for errors of all kinds, stands for."""
    while isinstance(exc, OperationalError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def is_broker_fault(app: Celery, exc: BaseException) -> bool:
    """True if the broker, or the way to it, is at fault for a failed publish; not the message."""
    faults: Any = (OSError, OperationalError, *app.connection_for_write().connection_errors)
    root = root_of(exc)
    # For Redis, kombu takes a missing key for a lost connection.
    return isinstance(root, faults) and not isinstance(root, LookupError)


def publish_anew(
    task: Task[Any, Any], request: Any, delay: float, retries: int, *, is_owned: bool = False
) -> int:
    """Publish the message of `request` again through its own route, to come after `delay`.

    Arguments:
        is_owned: its run has an owner, which is counted; see `times_put_back`.

    Returns:
        The delay in whole seconds, at least 1: a broker's native delay takes no fractions.
    """
    seconds = max(1, math.ceil(delay))
    times = times_put_back(request)
    headers = {**(request.headers or {}), HEADER_PUT_BACK: times + 1 if is_owned else times or 1}
    signature = signature_of(task, request, countdown=seconds, retries=retries, headers=headers)
    signature.apply_async(add_to_parent=False)
    return seconds

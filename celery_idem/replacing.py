"""What takes the place of a task, by `Task.replace`.

It inherits the task id, may be of the same task and may have the same arguments, and yet it is a
run of its own. Celery counts in the message how often an id was inherited, but not in each: the
last part of a chain within a chord is left out, and what follows in a chain is counted too, which
keeps its own id. Owns a count of our own in the one message that inherits. Must not know keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from celery_idem.errors import InvalidHeader

#: How often the task id of the message was inherited, and from which tasks.
HEADER_REPLACES: Final = "idem_replaces"
HEADER_REPLACED: Final = "idem_replaced_tasks"
MARKS: Final = (HEADER_REPLACES, HEADER_REPLACED)


def times_replaced(headers: Mapping[str, Any] | None) -> int:
    """How often the task id of a message was inherited.

    Raises:
        InvalidHeader: it does not say that.
    """
    times = (headers or {}).get(HEADER_REPLACES, 0)
    if isinstance(times, bool) or not isinstance(times, int) or times < 0:
        raise InvalidHeader(HEADER_REPLACES, times, "it must be a whole number")
    return times


def replaces(task: str, headers: Mapping[str, Any] | None) -> bool:
    """True if a message takes the place of one of the same task, whose arguments it may have."""
    names = (headers or {}).get(HEADER_REPLACED) or ()
    return isinstance(names, list | tuple) and task in names


def mark_heir(signature: Any, task: str, request: Any) -> None:
    """Count the inheritance in that part of `signature` which has the task id of `request`.

    Arguments:
        task: the one whose place it takes.
    """
    before = request.headers or {}
    times = 1 + max(times_replaced(before), request.replaced_task_nesting or 0)
    names = sorted({task, *(before.get(HEADER_REPLACED) or ())})
    marks = {HEADER_REPLACES: times, HEADER_REPLACED: names}
    for part in _parts(signature):
        options = part["options"]
        if options.get("task_id") == request.id:
            options["headers"] = {**(options.get("headers") or {}), **marks}


def handed_on(headers: dict[str, Any], before: Mapping[str, Any], task: str) -> dict[str, Any]:
    """`headers` of what takes the place of `task`, which has not marked it.

    Arguments:
        before: the headers of the message whose place it takes.
    """
    if HEADER_REPLACES not in before or times_replaced(headers) > times_replaced(before):
        return headers
    names = sorted({task, *(before.get(HEADER_REPLACED) or ())})
    marks = {HEADER_REPLACES: times_replaced(before) + 1, HEADER_REPLACED: names}
    return {**headers, **marks}


def _parts(signature: Any) -> Iterator[Any]:
    """The tasks of a signature, which is a dict of Celery's, as are all that are in it."""
    kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind in ("chain", "group"):
        for part in kwargs["tasks"]:
            yield from _parts(part)
    elif kind == "chord":
        header = kwargs["header"]
        for part in [header] if isinstance(header, dict) else header:
            yield from _parts(part)
        yield from _parts(kwargs["body"])
    else:
        yield signature

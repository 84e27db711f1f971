"""Headers that a body passes on to other messages.

It may do so for the sake of those of its project, and those of ours are among them. Owns which of
them do not belong to the other message, as they name one that is being executed. Must not know what
a key is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery import current_task

from celery_idem.keys import HEADER_KEY, HEADER_SLOT, STAMP
from celery_idem.messages import HEADER_PUT_BACK
from celery_idem.replacing import MARKS, handed_on, times_replaced
from celery_idem.task_keys import OPTION

Headers = Mapping[str, Any]

#: Of the messages whose bodies are being executed here, one within the other.
_EXECUTED: ContextVar[tuple[Headers, ...]] = ContextVar("celery_idem_executed", default=())


@contextmanager
def executing(request: Any) -> Iterator[None]:
    """Within it the body of this message is executed."""
    token = _EXECUTED.set((*_EXECUTED.get(), request.headers or {}))
    try:
        yield
    finally:
        _EXECUTED.reset(token)


def without_anothers(
    task: Any, headers: Headers | None, options: Mapping[str, Any]
) -> Headers | None:
    """`headers` of a message that is to be published, without what names another one.

    Arguments:
        options: of the publish.
    """
    alone = {HEADER_PUT_BACK, OPTION, *MARKS}
    current: Any = current_task._get_current_object()  # type: ignore[attr-defined]
    if current is None or current.request.called_directly:
        return _cleaned(headers, _EXECUTED.get(), alone)
    theirs = current.request.headers or {}
    is_heir = options.get("task_id") == current.request.id
    is_of_task = current.name == task.name
    if is_heir and is_of_task and times_replaced(headers) == times_replaced(theirs):
        return headers  # The same one, to come again.
    if not is_of_task:
        alone.discard(OPTION)  # Of another task, the same text is another key.
    if is_heir:
        alone.difference_update(MARKS)
    kept = _cleaned(headers, (*_EXECUTED.get(), theirs), alone)
    # A plain task, which has no `on_replace` of ours, may stand between two of this one.
    return handed_on(dict(kept or {}), theirs, current.name) if is_heir else kept


def _cleaned(
    headers: Headers | None, executed: tuple[Headers, ...], alone: set[str]
) -> Headers | None:
    """Without the stamp of any of `executed`, and what each has of the names `alone`."""
    if not headers:
        return headers
    kept = dict(headers)
    for theirs in executed:
        # As a whole: a stamp that lacks a part is another one, or broken.
        is_theirs = HEADER_KEY in theirs and _are_of(theirs, kept, HEADER_KEY, HEADER_SLOT)
        names = {*(STAMP if is_theirs else ()), *(n for n in alone if _are_of(theirs, kept, n))}
        kept = {name: value for name, value in kept.items() if name not in names}
    return kept


def _are_of(theirs: Headers, headers: Headers, *names: str) -> bool:
    return all(name in theirs and headers.get(name) == theirs[name] for name in names)

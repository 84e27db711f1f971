"""The options ``idem_key`` and ``idem_grain`` of a task: which run its messages are.

Owns how a message that comes from no slot gets its key: one that its sender has given, one that is
made of its arguments, or its task id. Both sides use it: the sender, who stamps it, and the worker,
for messages of senders that do not know the task. Must not know what is done with a key.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal, get_args

from celery import Celery

from celery_idem.arguments import Arguments, filled
from celery_idem.canonical import canonical
from celery_idem.clock import SYSTEM
from celery_idem.config import Settings
from celery_idem.errors import ImproperlyConfigured, InvalidHeader, InvalidRunKey
from celery_idem.keys import EPOCH, HEADER_KEY, RunKey, Stamp, check_text
from celery_idem.policy import Unstamped
from celery_idem.slots import Grain, grain_start

#: The option of a publish, and the header in which senders without the task may give it.
OPTION = "idem_key"

_KINDS = (
    "it must be a template like 'bill:{customer}', a list of argument names, or a callable over "
    "the task's arguments"
)


class TaskKey:
    """What a task's options make of a message.

    Arguments:
        owner: who has the options, for errors.
        given: a template, a list of argument names, a callable that returns a text, or None to say
            that there is nothing to do; or None.
        grain: the calendar period within which a key names one run; None: for ever.
        arguments: of the task's body; None if nothing is made of them.

    Raises:
        ImproperlyConfigured: an option is not possible, or names an argument that the body lacks.
    """

    def __init__(self, owner: str, given: Any, grain: Any, arguments: Arguments | None) -> None:
        self._setting = f"{OPTION} of {owner}"
        self._arguments = arguments
        self._grain = _checked_grain(f"idem_grain of {owner}", grain)
        self._template: str | None = None
        self._names: tuple[str, ...] = ()
        self._make: Callable[..., Any] | None = None
        if callable(given):
            self._make = given
        elif arguments is not None:
            self._read(given, arguments)
        self._gives = given is not None or self._grain is not None

    def _read(self, given: Any, arguments: Arguments) -> None:
        if isinstance(given, str) and given:
            arguments.check_template(self._setting, given)
            self._template = given
            return
        is_list = isinstance(given, list | tuple) and given
        if not is_list or not all(isinstance(name, str) for name in given):
            raise ImproperlyConfigured(self._setting, given, _KINDS)
        for name in given:
            arguments.check_name(self._setting, given, name)
        self._names = tuple(given)

    def text(self, args: Any, kwargs: Any) -> str | None:
        """The key that these arguments make; None if the options do not say.

        Raises:
            ImproperlyConfigured: they do not fill the template, or the callable has returned
                something else than a text.
            NotCanonical: an argument has no canonical form.
            TypeError: the body does not take them.
        """
        if not self._gives:
            return None
        args, kwargs = args or (), kwargs or {}
        if self._make is not None:
            made = self._make(*args, **kwargs)
            if made is not None and not isinstance(made, str):
                reason = f"it has returned a {type(made).__name__}, and must return a str or None"
                raise ImproperlyConfigured(self._setting, made, reason)
            return made
        named = self._arguments.named(args, kwargs) if self._arguments else {}
        if self._template is not None:
            return filled(self._setting, self._template, named)
        return canonical({name: named.get(name) for name in self._names}, "arguments")

    def slot(self, app: Celery, now: datetime) -> datetime:
        """What the key belongs to: the start of its period, or `EPOCH`."""
        if self._grain is None:
            return EPOCH
        return grain_start(now, self._grain, app.timezone)


def _checked_grain(setting: str, grain: Any) -> Grain | None:
    allowed = get_args(Grain)
    if grain is None or grain in allowed:
        return grain  # type: ignore[no-any-return]
    raise ImproperlyConfigured(
        setting, grain, f"allowed are {', '.join(map(repr, allowed))}, or None"
    )


def key_of(task: type[Any]) -> TaskKey:
    """What a task class says of its messages' keys.

    Raises:
        ImproperlyConfigured: see `TaskKey`.
    """
    given = inspect.getattr_static(task, OPTION, None)
    given = given.__func__ if isinstance(given, staticmethod) else given
    arguments = None if given is None or callable(given) else Arguments.of(task)
    return TaskKey(f"task {task.name}", given, task.idem_grain, arguments)


# -- the sender ----------------------------------------------------------------------------------


def stamped(
    task: Any, args: Any, kwargs: Any, headers: Mapping[str, Any] | None, given: Any
) -> Mapping[str, Any] | None:
    """The headers of a message that is about to be published, with its key.

    Arguments:
        given: the key that the sender has given, or None.

    Raises:
        InvalidRunKey: it cannot be a key.
        Exception: what `TaskKey.text` raises.
    """
    if headers and HEADER_KEY in headers:
        # A slot's, or one that was stamped before: of a retry, of a message that was put back.
        return headers
    own: TaskKey = task._idem_key
    text = own.text(args, kwargs) if given is None else check_text(given)
    if text is None:
        return headers
    settings = Settings.of(task.app)
    key = _named(task, own, settings, text)
    return Stamp(key).write(headers, task.name, settings.signing_key)


def _named(task: Any, own: TaskKey, settings: Settings, text: str) -> RunKey:
    slot = own.slot(task.app, SYSTEM.now())
    return RunKey.for_task(settings.namespace, task.name, text, slot)


# -- the worker ----------------------------------------------------------------------------------


def identify(
    task: Any, headers: Mapping[str, Any], request: Mapping[str, Any], settings: Settings
) -> tuple[Stamp | None, RunKey | None]:
    """The stamp of a message, and its run's key; without the latter it runs without a claim.

    Arguments:
        request: with its ``id``, ``replaced_task_nesting``, ``args`` and ``kwargs``.

    Raises:
        InvalidHeader: a header is broken or forged, or messages without a key are refused.
        InvalidRunKey: what names the run cannot be a key.
        Exception: what `TaskKey.text` raises.
    """
    stamp = Stamp.read(headers, task.name, settings.signing_key)
    if stamp is not None:
        return stamp, stamp.key
    own: TaskKey = task._idem_key
    text = _given(headers, settings)
    if text is None:
        text = own.text(request.get("args"), request.get("kwargs"))
    if text is not None:
        return None, _named(task, own, settings, text)
    unstamped = Unstamped(task.unstamped or settings.unstamped)
    if unstamped is Unstamped.REJECT:
        raise InvalidHeader(
            HEADER_KEY, None, "messages without a run key are refused (idem_unstamped)"
        )
    if unstamped is Unstamped.RUN:
        return None, None
    nesting = request.get("replaced_task_nesting") or 0
    return None, RunKey.for_message(settings.namespace, task.name, request["id"], nesting)


def _given(headers: Mapping[str, Any], settings: Settings) -> str | None:
    """The key in the header of a sender that does not know the task."""
    text = headers.get(OPTION)
    if text is None:
        return None
    if settings.signing_key:
        raise InvalidHeader(OPTION, text, "it is not signed: send with the task's apply_async")
    try:
        return check_text(text)
    except InvalidRunKey as exc:
        raise InvalidHeader(OPTION, text, exc.reason) from exc


#: For annotations of tasks.
KeyOption = str | list[str] | tuple[str, ...] | Callable[..., str | None] | None
GrainOption = Literal["minute", "hour", "day", "week", "month"] | None

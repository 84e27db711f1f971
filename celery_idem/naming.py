"""The options ``idem_key`` and ``idem_grain`` of a task: which run its messages are.

Owns how a message that comes from no slot gets its key: one that its sender has given, one that is
made of its arguments, or its task id. Both sides use it: the sender, who stamps it, and the worker,
for messages of senders that do not know the task. Must not know what is done with a key.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, get_args

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from celery_idem.arguments import Arguments, filled
from celery_idem.canonical import canonical
from celery_idem.clock import SYSTEM
from celery_idem.config import Settings
from celery_idem.errors import ImproperlyConfigured, InvalidHeader, InvalidRunKey
from celery_idem.keys import EPOCH, HEADER_KEY, RunKey, Stamp, check_text
from celery_idem.policy import Scope, Unstamped
from celery_idem.slots import Grain, grain_start

#: For annotations of tasks.
GrainOption = Literal["minute", "hour", "day", "week", "month"] | None
#: The option of a publish, and the header in which senders without the task may give it.
OPTION = "idem_key"

#: Given for a key: all arguments make it.
ALL: Any = object()

_KINDS = (
    "it must be a template like 'bill:{customer}', a list of argument names, or a callable over "
    "the task's arguments"
)


class TaskKey:
    """What a task's options make of a message.

    Arguments:
        owner: who has the options, for errors.
        given: a template, a list of argument names, a callable that returns a text, `ALL`, or None.
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
        elif arguments is not None and given is not ALL:
            self._read(given, arguments)
        self._gives = given is not None or self._grain is not None
        self._takes_all = given is ALL

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
        if self._takes_all:
            return canonical(named, "arguments")
        if self._template is not None:
            return filled(self._setting, self._template, named)
        return canonical({name: named.get(name) for name in self._names}, "arguments")

    @property
    def has_grain(self) -> bool:
        """True if a key holds for a calendar period."""
        return self._grain is not None

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
    if given is None and task.idem_grain is None and task._idem_terms.is_once:
        given = ALL
    arguments = None if given is None or callable(given) else Arguments.of(task)
    return TaskKey(f"task {task.name}", given, task.idem_grain, arguments)


def payload_of(task: Any, stamp: Stamp | None, key: RunKey, request: Any) -> str | None:
    """A digest of the arguments of a message whose key was given by its sender.

    None for all others: what their arguments are the key says, as far as it matters. And None if
    the arguments have no canonical form, or for a retry, which may have new ones.
    """
    headers = request.headers or {}
    is_given = stamp.entry is None if stamp is not None else OPTION in headers
    if not is_given or request.retries:
        return None
    return digest_of(task, key, request.args, request.kwargs)


def digest_of(task: Any, key: RunKey, args: Any, kwargs: Any) -> str | None:
    """A digest of these arguments, if two messages with the key must not differ in them."""
    if not task.check_payload:
        return None
    args, kwargs = args or (), kwargs or {}
    try:
        made = task._idem_key.text(args, kwargs)
        namespace = Settings.of(task.app).namespace
        if made is not None and key == RunKey.for_task(namespace, task.name, made, key.slot):
            return None
        named = Arguments.of(type(task)).named(args, kwargs)
        text = canonical(named, "arguments")
    except SoftTimeLimitExceeded:  # It interrupts once: whoever claims puts the message back.
        raise
    except Exception:
        return None
    return blake2b(text.encode(), digest_size=16).hexdigest()


# -- the sender ----------------------------------------------------------------------------------


class Stamped(NamedTuple):
    """What names a message that is about to be published.

    Attributes:
        headers: with its key; None if there are none.
        key: None if it has none, or had one before.
    """

    headers: Mapping[str, Any] | None
    key: RunKey | None = None


def stamped(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any], given: Any) -> Stamped:
    """What names a message that is about to be published.

    Arguments:
        options: of the publish.
        given: the key that the sender has given, or None.

    Raises:
        InvalidRunKey: it cannot be a key.
        Exception: what `TaskKey.text` raises.
    """
    headers: Mapping[str, Any] | None = options.get("headers")
    if headers and HEADER_KEY in headers:
        # A slot's, or one that was stamped before: of a retry, of a message that was put back.
        return Stamped(headers)
    settings = Settings.of(task.app)
    old = _key_of_delivery(task, options)
    key = old or _new_key(task, args, kwargs, options, given, settings)
    if key is None:
        return Stamped(headers)
    written = Stamp(key).write(headers, task.name, settings.signing_key)
    return Stamped(written, None if old else key)


def _new_key(
    task: Any, args: Any, kwargs: Any, options: Mapping[str, Any], given: Any, settings: Settings
) -> RunKey | None:
    own: TaskKey = task._idem_key
    if given is None and OPTION in (options.get("headers") or {}):
        given = options["headers"][OPTION]
    if given is not None:
        text: str | None = check_text(given)
    else:
        # What takes the place of a task is not a copy of it, though it may have its arguments.
        text = None if options.get("replaced_task_nesting") else own.text(args, kwargs)
    if text is None:
        return None
    slot = own.slot(task.app, SYSTEM.now())
    return RunKey.for_task(settings.namespace, task.name, text, slot)


#: Where a request notes the key that its worker has made for it.
_NOTE = "idem_key_made"


def _key_of_delivery(task: Any, options: Mapping[str, Any]) -> RunKey | None:
    """The key of the message that is being executed, if this is the same one, to come again.

    Not made anew: a retry may have other arguments, and the body may have changed those it got.
    """
    request = task.request
    key: RunKey | None = getattr(request, _NOTE, None)
    nesting = options.get("replaced_task_nesting") or 0
    is_same = options.get("task_id") == request.id and nesting == request.replaced_task_nesting
    return key if is_same else None


# -- the worker ----------------------------------------------------------------------------------


class Identity(NamedTuple):
    """Which run a message is.

    Attributes:
        key: None: it runs without a claim.
        is_shared: messages of others may have the key: of no slot, and not made of the task id.
        waits_as: the key under which the message waits, if that is another one.
    """

    stamp: Stamp | None
    key: RunKey | None
    is_shared: bool = False
    waits_as: RunKey | None = None


def identify(
    task: Any, headers: Mapping[str, Any], request: Mapping[str, Any], settings: Settings
) -> Identity:
    """Which run a message is.

    Arguments:
        request: with its ``id``, ``replaced_task_nesting``, ``args`` and ``kwargs``.

    Raises:
        InvalidHeader: a header is broken or forged, or messages without a key are refused.
        InvalidRunKey: what names the run cannot be a key.
        Exception: what `TaskKey.text` raises.
    """
    stamp = Stamp.read(headers, task.name, settings.signing_key)
    if stamp is not None and stamp.entry is not None:
        return Identity(stamp, stamp.key)
    if stamp is not None:
        return _shared(task, stamp, stamp.key, request["id"])
    unstamped = Unstamped(task.unstamped or settings.unstamped)
    if unstamped is Unstamped.REJECT:
        raise InvalidHeader(
            HEADER_KEY, None, "messages without a run key are refused (idem_unstamped)"
        )
    nesting = request.get("replaced_task_nesting") or 0
    text = _unsigned(task, headers, request, settings, nesting)
    if text is not None:
        key = RunKey.for_task(settings.namespace, task.name, text)
        return _shared(task, None, key, request["id"])
    if unstamped is Unstamped.RUN:
        return Identity(None, None)
    own = RunKey.for_message(settings.namespace, task.name, request["id"], nesting)
    return Identity(None, own)


def _shared(task: Any, stamp: Stamp | None, key: RunKey, task_id: str) -> Identity:
    if task._idem_terms.scope is not Scope.UNTIL_START:
        return Identity(stamp, key, True)
    # From its start on, the key is that of other messages.
    return Identity(stamp, key.of_message(task_id), False, key)


def note(request: Any, key: RunKey) -> None:
    """Keep a key that was made here for when this message is published again."""
    setattr(request, _NOTE, key)


def _unsigned(
    task: Any,
    headers: Mapping[str, Any],
    request: Mapping[str, Any],
    settings: Settings,
    nesting: int,
) -> str | None:
    """The key of a message whose sender does not know the task: from its header or arguments."""
    own: TaskKey = task._idem_key
    text = headers.get(OPTION)
    if text is not None:
        if settings.signing_key:
            raise InvalidHeader(OPTION, text, "it is not signed: send with the task's apply_async")
        if own.has_grain:
            raise InvalidHeader(
                OPTION, text, "the task has idem_grain: send with its apply_async, which knows when"
            )
        try:
            return check_text(text)
        except InvalidRunKey as exc:
            raise InvalidHeader(OPTION, text, exc.reason) from exc
    # With a signing key nobody is to occupy a key by arguments. And the period of a grain is known
    # to the sender alone: the message may come again in the next one.
    if settings.signing_key or own.has_grain or nesting:
        return None
    return own.text(request.get("args"), request.get("kwargs"))

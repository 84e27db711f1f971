"""Which run a message is.

Owns how a message that comes from no slot gets its key: one that its sender has given, one that is
made of its arguments, or its task id. Both sides use it: the sender, who stamps it, and the worker,
for messages of senders that do not know the task. Must not know what is done with a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from celery.exceptions import SoftTimeLimitExceeded

from celery_idem.arguments import Arguments
from celery_idem.canonical import canonical
from celery_idem.clock import SYSTEM
from celery_idem.config import Settings
from celery_idem.errors import InvalidHeader, InvalidRunKey
from celery_idem.keys import HEADER_KEY, RunKey, Stamp, check_text
from celery_idem.messages import HEADER_PUT_BACK
from celery_idem.notes import note, noted
from celery_idem.passing import without_anothers
from celery_idem.policy import Scope, Unstamped
from celery_idem.replacing import replaces, times_replaced
from celery_idem.task_keys import OPTION, TaskKey


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
    headers = without_anothers(task, headers, options)
    options = {**options, "headers": headers}
    if headers and HEADER_KEY in headers:
        # A slot's, or one that was stamped before: of a retry, of a message that was put back.
        return Stamped(headers)
    settings = Settings.of(task.app)
    old = _key_of_delivery(task, options)
    # What comes again without a key is named by its task id, as it was before.
    is_old = old or options.get("retries") or (headers and HEADER_PUT_BACK in headers)
    key = old if is_old else _new_key(task, args, kwargs, options, given, settings)
    if key is None:
        return Stamped(headers)
    written = Stamp(key).write(headers, task.name, settings.signing_key)
    return Stamped(written, None if is_old else key)


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
        text = None if replaces(task.name, options.get("headers")) else own.text(args, kwargs)
    if text is None:
        return None
    slot = own.slot(task.app, SYSTEM.now())
    return RunKey.for_task(settings.namespace, task.name, text, slot)


#: Where a request notes the key that its worker has made for it.
_NOTE = "key"


def _key_of_delivery(task: Any, options: Mapping[str, Any]) -> RunKey | None:
    """The key of the message that is being executed, if this is the same one, to come again.

    Not made anew: a retry may have other arguments, and the body may have changed those it got.
    """
    request = task.request
    key: RunKey | None = noted(request, _NOTE)
    times = times_replaced(options.get("headers"))
    is_same = options.get("task_id") == request.id and times == times_replaced(request.headers)
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
    times = times_replaced(headers)
    text = _unsigned(task, headers, request, settings)
    if text is not None:
        key = RunKey.for_task(settings.namespace, task.name, text)
        return _shared(task, None, key, request["id"])
    if unstamped is Unstamped.RUN:
        return Identity(None, None)
    nesting = max(times, request.get("replaced_task_nesting") or 0)
    own = RunKey.for_message(settings.namespace, task.name, str(request["id"]), nesting)
    return Identity(None, own)


def _shared(task: Any, stamp: Stamp | None, key: RunKey, task_id: str) -> Identity:
    if task._idem_terms.scope is not Scope.UNTIL_START:
        return Identity(stamp, key, True)
    # From its start on, the key is that of other messages.
    return Identity(stamp, key.of_message(task_id), False, key)


def note_key(request: Any, key: RunKey) -> None:
    """Keep a key that was made here for when this message is published again."""
    note(request, _NOTE, key)


def _unsigned(
    task: Any,
    headers: Mapping[str, Any],
    request: Mapping[str, Any],
    settings: Settings,
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
    if settings.signing_key or own.has_grain or replaces(task.name, headers):
        return None
    return own.text(request.get("args"), request.get("kwargs"))

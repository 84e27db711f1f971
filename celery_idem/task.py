"""The base class of tasks: claim, run, finish.

Owns what happens between the arrival of a message and its end in the ledger, inside Celery's
tracer: `IdempotentTask.__call__` claims before the body and finishes after it. What an arriving
message gets, row by row, stands in the guarantees of the documentation.
Must not know schedulers, nor how a ledger stores anything.
"""

from __future__ import annotations

import time
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from celery.exceptions import Reject, SoftTimeLimitExceeded
from celery.utils import uuid

from celery_idem import messages, signals
from celery_idem.clock import SYSTEM
from celery_idem.config import PREFIX, Settings
from celery_idem.delivery import put_back, soon
from celery_idem.ending import persist
from celery_idem.errors import DuplicateRun, IdemError
from celery_idem.execution import Execution
from celery_idem.keys import RunKey
from celery_idem.ledger import Retry as AwaitedRetry
from celery_idem.locking import TaskLock, lock_of
from celery_idem.member import Member
from celery_idem.naming import digest_of, stamped
from celery_idem.overriding import ENTERED, GOES_ON, come_to, execute, progress, take_over
from celery_idem.replacing import mark_heir
from celery_idem.replaying import check_replay
from celery_idem.reserving import Sending, heed_names, is_awaited, publish_once
from celery_idem.run import CURRENT, Run
from celery_idem.scoping import ONCE, PublishOption, ScopeOption, Terms, terms_of
from celery_idem.steps import IdempotentWorker
from celery_idem.task_keys import OPTION, GrainOption, TaskKey, key_of
from celery_idem.task_options import read_options

if TYPE_CHECKING:
    BaseTask = Task[Any, Any]
else:
    BaseTask = Task

#: What Celery's `apply_async` takes after the arguments.
_POSITIONAL = ("task_id", "producer", "link", "link_error", "shadow")

#: The run whose retry is being published by `Task.retry` in this context.
_RETRYING: ContextVar[Run | None] = ContextVar("celery_idem_retrying", default=None)


class IdempotentTask(BaseTask):
    """A Celery task whose body runs once per run key, under a claim in the ledger.

    Use it as ``@app.task(base=IdempotentTask)``. Called as a plain function it is transparent.

    Raises (in the worker, as the task's failure):
        InvalidHeader: the message carries a broken or forged run key; its content is kept in the
            ledger's history.
    """

    abstract = True

    # With a claim a redelivery is harmless, and without one a crash loses the run.
    acks_late = True
    reject_on_worker_lost = True
    #: The parent's verdict on what its children cannot write any more.
    Request = "celery_idem.request:Request"

    #: Options of one task; None means the app's setting ``idem_`` of the same name.
    max_attempts: int | None = None
    on_crash: str | None = None
    on_database_error: str | None = None
    on_duplicate: str | None = None
    store_result: bool | None = None
    unstamped: str | None = None

    #: The critical section that a body is: a template over its arguments (``"stock:{sku}"``),
    #: several, a callable, or `celery_idem.critical_section` of templates.
    idem_lock: Any = None

    #: Which messages of the task are one run: a template over its arguments
    #: (``"bill:{customer}"``), a list of argument names, or a callable over them. None: each
    #: message is a run of its own.
    idem_key: Any = None
    #: The calendar period, in the app's time zone, within which such a key names one run: "minute",
    #: "hour", "day", "week" or "month". None: it does so for ever.
    idem_grain: GrainOption = None

    #: For how long a run has its key: "forever" (until it is pruned), "until_done", or, with
    #: `idem_publish`, "until_start".
    idem_scope: ScopeOption = "forever"
    #: Seconds, or a timedelta, for which it has it at least, counted from when it was recorded; it
    #: need not be for ever then. None: the scope alone counts.
    idem_period: float | timedelta | None = None
    #: "once": a message whose key is taken is not published, and its sender gets the result of the
    #: earlier one; "once_or_raise": it gets `AlreadyScheduled`. Without `idem_key`, the key is made
    #: of all arguments. "always": the worker decides.
    idem_publish: PublishOption = "always"

    #: Two messages to which their senders have given one key, and other arguments, are a mistake,
    #: of which `KeyReused` tells.
    check_payload: bool = True

    #: Tells a scheduler, which does not know this class, that the task's slots are claimed.
    idem_claims = True

    _idem_track_started = False
    _idem_lock: TaskLock | None = None
    _idem_key: TaskKey | None = None
    _idem_terms = Terms()

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Check settings and options as soon as they are known.

        Raises:
            ImproperlyConfigured: a setting or an option of this task is not possible.
        """
        super().on_bound(app)
        settings = Settings.read(app)
        owner = f"task {cls.name}"
        read_options(owner, cls, IdempotentTask)
        check_replay(owner, cls, settings)
        cls._idem_lock = lock_of(cls)
        cls._idem_terms = terms_of(owner, cls.idem_scope, cls.idem_period, cls.idem_publish)
        cls._idem_key = key_of(cls)
        # Of a worker alone: whoever only publishes needs no database.
        app.steps["worker"].add(IdempotentWorker)
        if not settings.enabled:
            cls._become_plain(app)
            return
        if cls._idem_terms.is_once:
            heed_names(app)
        # Celery takes a class as well as several.
        given: Any = cls.throws
        throws = given if isinstance(given, tuple | list) else (given,)
        if DuplicateRun not in throws:
            cls.throws = (*throws, DuplicateRun)
        take_over(cls, IdempotentTask)
        if cls.track_started:
            # The tracer stores STARTED before it calls the task, and a copy would overwrite the
            # FAILURE of the run it repeats: stored after the claim instead.
            cls._idem_track_started, cls.track_started = True, False

    @classmethod
    def _become_plain(cls, app: Celery) -> None:
        """Without claims a late acknowledgement would run a task twice: the app's settings hold."""
        for name in ("acks_late", "reject_on_worker_lost"):
            owner = next(base for base in cls.__mro__ if name in base.__dict__)
            if owner is IdempotentTask:
                setattr(cls, name, app.conf[f"task_{name}"])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request: Any = self.request
        if request.called_directly:
            return super().__call__(*args, **kwargs)
        how_far = progress(request)
        if how_far is None:
            return self._idem_enter(args, kwargs)
        if how_far is GOES_ON:
            come_to(request, ENTERED)
            return self.run(*args, **kwargs)
        # A second call under the request that the tracer has pushed: the body calls its own task as
        # a plain function.
        return super().__call__(*args, **kwargs)

    def _idem_enter(self, args: Any, kwargs: Any) -> Any:
        request: Any = self.request
        come_to(request, ENTERED)
        if not Settings.of(self.app).enabled:
            return execute(self, args, kwargs)
        try:
            member = Member.of(self.app)
        except IdemError as exc:
            if request.is_eager:
                raise
            put_back(self, request, f"{self.name}[{request.id}]", soon(), str(exc))
        return Execution(self, request, member).execute(args, kwargs)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **options: Any,
    ) -> Any:
        """Celery's; a retry or a message that is put back keeps its serializer and compression."""
        request = self.request if request is None else request
        options = {**messages.form(request), **options}
        if options.get("headers") is not None:
            # Its run is the same, whatever headers the body gives to a retry.
            options["headers"] = {**_of_ours(request.headers), **options["headers"]}
        return super().signature_from_request(request, args, kwargs, queue, **options)

    def on_replace(self, sig: Any) -> Any:
        """Celery's, for a signature in which the heir of the task id is marked as such."""
        if Settings.of(self.app).enabled:
            mark_heir(sig, self.name, self.request)
        return super().on_replace(sig)

    def retry(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's retry; the ledger awaits the retry before its message goes out.

        The other order loses runs: the message can arrive before the ledger knows of the retry,
        and is then a copy of a run that is being executed.
        """
        run = CURRENT.get()
        if run is None or self.request.called_directly or run.task_id != self.request.id:
            return super().retry(*args, **kwargs)
        token = _RETRYING.set(run)
        try:
            return super().retry(*args, **kwargs)
        except Reject as exc:
            # Task.retry rejects the message for good if the publish failed.
            reason = getattr(exc, "reason", None)
            if isinstance(reason, IdemError):
                raise reason from exc
            if not messages.is_broker_fault(self.app, reason or exc):
                # It would come at once, and fail again.
                with suppress(SoftTimeLimitExceeded):
                    time.sleep(soon())
            raise Reject(reason, requeue=True) from exc
        finally:
            _RETRYING.reset(token)

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Celery's publish; inside `retry` it first moves the run to ``retrying``.

        With ``idem_key="order-42"`` among the options, all messages of this task with that key are
        one run; ``idem_publish`` goes before that of the task.

        Returns:
            The result of this message; with ``idem_publish``, perhaps that of an earlier one.

        Raises:
            InvalidRunKey, NotCanonical, ImproperlyConfigured, TypeError: no key can be made of the
                option, or of the arguments; nothing was published.
            AlreadyScheduled, KeyReused: nothing was published, see ``idem_publish``.
        """
        options.update(zip(_POSITIONAL, more, strict=False))
        _make_text(options)
        terms = self._idem_terms.with_publish(f"task {self.name}", options.pop(ONCE, None))
        args, kwargs = self._as_sent(args, kwargs, options)
        key = self._name(args, kwargs, options)
        run = _RETRYING.get()
        if run is not None and options.get("task_id") == run.task_id:
            _await_retry(self, run, args, kwargs, options)
        publish = partial(super().apply_async, args, kwargs)
        if key is None or not terms.is_once or self.app.conf.task_always_eager:
            return publish(**options)
        awaited = is_awaited(options)
        options["task_id"] = options.get("task_id") or uuid()
        payload = digest_of(self, key, args, kwargs)
        sending = Sending(self, key, args, kwargs, options, terms, payload, awaited)
        return publish_once(sending, partial(publish, **options))

    def apply(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Celery's call in this process, with the keys of `apply_async`."""
        options.pop(ONCE, None)
        _make_text(options)
        self._name(args, kwargs, options)
        return super().apply(args, kwargs, *more, **options)

    def _as_sent(self, args: Any, kwargs: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments as Celery sends them: models (``pydantic=True``) by what is in them."""
        dump = getattr(self, "_dump_pydantic_arguments", None)
        if dump is None or options.get("serializer", self.serializer) == "pickle":
            return args, kwargs
        sent: tuple[Any, Any] = dump(args, kwargs)
        return sent

    def _name(self, args: Any, kwargs: Any, options: dict[str, Any]) -> RunKey | None:
        """Put the key of a message that is about to be sent into its headers.

        Returns:
            It, if the message did not have it before.
        """
        given = options.pop(OPTION, None)
        if not Settings.of(self.app).enabled:
            return None
        headers, key = stamped(self, args, kwargs, options, given)
        if headers is not None:
            options["headers"] = headers
        return key


def _make_text(options: dict[str, Any]) -> None:
    """Of the task id, for which a UUID may be given."""
    if options.get("task_id") is not None:
        options["task_id"] = str(options["task_id"])


def _of_ours(headers: Any) -> dict[str, Any]:
    return {name: value for name, value in (headers or {}).items() if name.startswith(PREFIX)}


def _await_retry(task: IdempotentTask, run: Run, args: Any, kwargs: Any, options: Any) -> None:
    retries = options.get("retries") or run.retries + 1
    due_in = messages.seconds_until(options.get("countdown"), options.get("eta"))
    message = messages.dump(task.name, args, kwargs, options)
    ledger = Member.of(task.app).leases.ledger
    deadline = messages.instant(options.get("expires"), SYSTEM.now())
    awaited = AwaitedRetry(retries, due_in, message, deadline=deadline)
    try:
        persist(run, lambda: ledger.retry(run.key, run.fence, awaited), task.request.is_eager)
    except IdemError as exc:
        run.doubt = exc
        raise
    run.ended = True
    signals.retried(task, run, retries)

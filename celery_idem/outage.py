"""What a beat needs and may have to do without: the ledger, the broker.

Owns one notion for both: it is *away* from the first failure to the first success; both are logged
once; in between it is left alone for a while after each failure, because a beat that waits for it
records and publishes nothing else.
Must not know what is done with a ledger or a broker.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from celery_idem.clock import Clock
from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.ledger import Ledger

#: Seconds for which it is left alone after a failure, at least and at most.
SHORTEST, LONGEST = 1.0, 30.0
#: So many times as long as the try took: a third of the time, at most, is spent on failing tries.
PATIENCE = 2.0
#: Seconds after which a beat goes on without an answer of the ledger. Less than the minute within
#: which a slot is due in any case.
LIMIT = 10.0


class Outage:
    """Whether a thing is away.

    Arguments:
        lost: logs that it is away, with the error.
        found: logs that it is there again.
    """

    def __init__(
        self, clock: Clock, lost: Callable[[BaseException], None], found: Callable[[], None]
    ) -> None:
        self.away = False
        self._clock = clock
        self._lost = lost
        self._found = found
        self._again_at = 0.0

    @property
    def is_left_alone(self) -> bool:
        """True while it is away and was tried a moment ago."""
        return self.away and self._clock.elapsed() < self._again_at

    @contextmanager
    def watch(self, is_away: Callable[[Exception], bool], *, proves: bool = True) -> Iterator[None]:
        """Try something that needs it; errors for which `is_away` holds mean that it is away.

        Arguments:
            proves: success means that it is there again.
        """
        started = self._clock.elapsed()
        try:
            yield
        except Exception as exc:
            if is_away(exc):
                self._fails(exc, self._clock.elapsed() - started)
            raise
        else:
            if proves:
                self._works()

    def _fails(self, exc: BaseException, took: float) -> None:
        pause = min(LONGEST, max(SHORTEST, PATIENCE * took))
        self._again_at = self._clock.elapsed() + pause
        if not self.away:
            self.away = True
            self._lost(exc)

    def _works(self) -> None:
        if self.away:
            self.away = False
            self._found()


def is_ledger_error(exc: Exception) -> bool:
    """True for what a ledger raises.

    Also where it refuses a statement: a ledger of another version, or one that may not be written,
    is of as little use as one that does not answer.
    """
    return isinstance(exc, LedgerError)


def prompt(ledger: Ledger, limit: float = LIMIT) -> Ledger:
    """The ledger, of which each verb answers or raises `LedgerUnavailable` within `limit` seconds.

    Drivers wait for an answer that never comes, in a minute or for ever, when a network is cut or
    a server stands still. The verb goes on by itself then, as one whose answer was lost.
    """
    return cast(Ledger, _Prompt(ledger, limit))


def begin(ledger: Ledger, verb: str, *args: Any) -> Callable[[], Any]:
    """Have `ledger` execute a verb, of which the result, called, waits for the answer.

    What was begun is executed in that order. A ledger that is not `prompt` executes it when it is
    waited for.

    Raises:
        LedgerUnavailable: by the result, too; so it does for all that the verb raises.
    """
    if isinstance(ledger, _Prompt):
        return ledger.begin(verb, *args)
    return partial(getattr(ledger, verb), *args)


class _Prompt:
    def __init__(self, ledger: Ledger, limit: float) -> None:
        self._ledger = ledger
        self._limit = limit
        self._thread: _Hand | None = None
        self._overdue: Future[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.begin(name, *args, **kwargs)()

    def begin(self, name: str, *args: Any, **kwargs: Any) -> Callable[[], Any]:
        if self._overdue is not None and not self._overdue.done():
            raise LedgerUnavailable("the ledger's database has not answered yet")
        self._thread = self._thread or _Hand()
        verb = getattr(self._ledger, name)
        return partial(self._wait, self._thread.do(partial(verb, *args, **kwargs)))

    def _wait(self, answer: Future[Any]) -> Any:
        try:
            return answer.result(self._limit)
        except NoAnswer as exc:
            if answer.done():
                raise
            self._overdue = answer
            raise LedgerUnavailable(
                f"the ledger's database has not answered within {self._limit:g} seconds"
            ) from exc


class _Hand:
    """A thread that does one thing after the other. Not one of a pool: those are waited for when
    the process exits.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="celery_idem-ledger", daemon=True).start()

    def do(self, job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.put((future, job))
        return future

    def _run(self) -> None:
        while True:
            future, job = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as exc:
                future.set_exception(exc)
            del future, job

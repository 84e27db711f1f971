"""Tasks executed where they are called: apply(), task_always_eager, and plain calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, Task

from celery_idem import IdempotentTask, InvalidHeader, LedgerUnavailable, RunKey, current_run
from celery_idem.config import Settings
from celery_idem.errors import DuplicateRun, NoCurrentRun
from celery_idem.keys import Stamp
from celery_idem.member import Member
from celery_idem.run import RunRow, RunState

SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)
NAMESPACE = "eager"

NewApp = Callable[..., Celery]


@pytest.fixture
def new_app() -> Iterator[NewApp]:
    """Makes apps; closes what this process has of their ledgers."""
    apps: list[Celery] = []

    def make(url: str, **settings: Any) -> Celery:
        app = Celery(NAMESPACE, set_as_current=False)
        app.conf.update(idem_database_url=url, broker_url="memory://", **settings)
        apps.append(app)
        return app

    yield make
    for app in apps:
        if Settings.of(app).enabled:
            Member.of(app).leases.close()
        app.close()


class Shop:
    """An app with tasks whose bodies are counted in a list: everything happens in this process."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.done: list[Any] = []
        done = self.done

        @app.task(shared=False, base=IdempotentTask, name="note")
        def note(text: str = "") -> str:
            done.append(text)
            return text

        @app.task(shared=False, base=IdempotentTask, bind=True, max_retries=3, name="retries")
        def retries(self: Task[Any, Any], times: int) -> int:
            done.append(self.request.retries)
            if self.request.retries < times:
                raise self.retry(countdown=0, exc=OSError("not yet"))
            return self.request.retries

        @app.task(shared=False, base=IdempotentTask, bind=True, name="replaces")
        def replaces(self: Task[Any, Any], times: int) -> Any:
            done.append(times)
            return self.replace(replaces.s(times - 1)) if times else "replaced"

        @app.task(shared=False, base=IdempotentTask, name="outer")
        def outer(inner_id: str) -> list[str]:
            before = current_run().key.text
            note("called")
            note.apply(("applied",), task_id=inner_id)
            assert current_run().key.text == before
            return [before]

        @app.task(shared=False, base=IdempotentTask, name="fails")
        def fails() -> None:
            done.append("fails")
            raise ValueError("as asked")

        @app.task(shared=False, base=IdempotentTask, name="unclaimed", on_database_error="run")
        def unclaimed() -> None:
            done.append("unclaimed")

        self.note, self.retries, self.outer = note, retries, outer
        self.fails, self.unclaimed, self.replaces = fails, unclaimed, replaces

    def row(self, task: str, task_id: str) -> RunRow:
        row = self.read(RunKey.for_message(NAMESPACE, task, task_id))
        assert row is not None
        return row

    def read(self, key: RunKey) -> RunRow | None:
        return Member.of(self.app).leases.ledger.read(key)


@pytest.fixture
def shop(new_app: NewApp, sqlite_url: str) -> Shop:
    """On SQLite."""
    return Shop(new_app(sqlite_url))


@pytest.fixture
def each_shop(new_app: NewApp, database_url: str) -> Shop:
    """On each kind of database."""
    return Shop(new_app(database_url))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a ledger would be."""
    return tmp_path / "ledger.sqlite3"


def test_the_same_task_id_runs_once(shop: Shop) -> None:
    """apply() with a task id that was executed is a no-op; without one, each call is a run."""
    task_id = str(uuid4())
    first = shop.note.apply(("one",), task_id=task_id)
    second = shop.note.apply(("one",), task_id=task_id)
    assert (first.state, first.result) == ("SUCCESS", "one")
    state: str = second.state
    assert state == "IGNORED"
    assert shop.done == ["one"]
    row = shop.row("note", task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)
    shop.note.apply(("two",))
    shop.note.apply(("two",))
    assert shop.done == ["one", "two", "two"]


def test_a_stamp_runs_once_under_any_task_id(each_shop: Shop) -> None:
    """The run key in the headers decides, whatever the task id is."""
    key = RunKey.for_slot(NAMESPACE, "entry", SLOT)
    headers = Stamp(key, "entry").write(None, "note")
    results = [each_shop.note.apply(("slot",), headers=headers) for _ in range(3)]
    assert [str(result.state) for result in results] == ["SUCCESS", "IGNORED", "IGNORED"]
    assert each_shop.done == ["slot"]
    row = each_shop.read(key)
    assert row is not None
    assert (row.state, row.entry) == (RunState.SUCCEEDED, "entry")
    lines = Member.of(each_shop.app).leases.ledger.history(key)
    assert [line.kind for line in lines] == ["duplicate", "duplicate"]


def test_a_retry_goes_on_at_once(each_shop: Shop) -> None:
    """apply() retries in place: the same tries as in Celery, one fence more for each."""
    result = each_shop.retries.apply((2,), task_id="again")
    assert (result.state, result.result) == ("SUCCESS", 2)
    assert each_shop.done == [0, 1, 2]
    row = each_shop.row("retries", "again")
    assert (row.state, row.retries, row.fence) == (RunState.SUCCEEDED, 2, 3)


def test_a_retry_that_is_exhausted_has_failed(shop: Shop) -> None:
    """The exception of the body is the result of apply()."""
    result = shop.retries.apply((9,), task_id="never")
    assert result.state == "FAILURE"
    assert isinstance(result.result, OSError)
    assert shop.done == [0, 1, 2, 3]
    assert shop.row("retries", "never").state is RunState.FAILED


def test_a_failure_is_final(shop: Shop) -> None:
    """A copy of a failed run does not run the body."""
    results = [shop.fails.apply(task_id="broken") for _ in range(2)]
    assert [str(result.state) for result in results] == ["FAILURE", "IGNORED"]
    assert shop.done == ["fails"]
    assert shop.row("fails", "broken").error == "ValueError: as asked"


def test_a_body_may_apply_another_task(shop: Shop) -> None:
    """A nested apply() is a run of its own under a lease of its own; the outer one goes on."""
    result = shop.outer.apply(("inner",), task_id="outer")
    assert result.result == ["eager:outer[outer]"]
    assert shop.done == ["called", "applied"]
    inner, outer = shop.row("note", "inner"), shop.row("outer", "outer")
    assert inner.state is outer.state is RunState.SUCCEEDED
    assert inner.lease_id != outer.lease_id
    with pytest.raises(NoCurrentRun):
        current_run()


def test_always_eager_is_deduplicated(new_app: NewApp, sqlite_url: str) -> None:
    """task_always_eager: delay() and apply_async() claim as a worker would."""
    shop = Shop(new_app(sqlite_url, task_always_eager=True))
    results: list[Any] = [shop.note.apply_async(("x",), task_id="same") for _ in range(2)]
    assert [result.state for result in results] == ["SUCCESS", "IGNORED"]
    key = RunKey.for_slot(NAMESPACE, "entry", SLOT)
    headers = Stamp(key).write(None, "note")
    for _ in range(2):
        shop.note.apply_async(("y",), headers=headers)
    assert shop.retries.delay(2).get() == 2
    assert shop.done == ["x", "y", 0, 1, 2]


def test_a_plain_call_knows_no_ledger(new_app: NewApp, file: Path) -> None:
    """task() is the function: no connection, no table, no run, as often as it is called."""
    shop = Shop(new_app(f"sqlite:///{file}"))
    assert shop.note("one") == shop.note("one") == "one"
    with pytest.raises(ValueError, match="as asked"):
        shop.fails()
    assert shop.done == ["one", "one", "fails"]
    assert not file.exists()


def test_switched_off_it_is_plain_celery(new_app: NewApp, file: Path) -> None:
    """idem_enabled = False: no ledger is made, each call runs, retries work."""
    shop = Shop(new_app(f"sqlite:///{file}", idem_enabled=False))
    for _ in range(2):
        assert shop.note.apply(("x",), task_id="same").result == "x"
    assert shop.retries.apply((1,)).result == 1
    assert shop.done == ["x", "x", 0, 1]
    assert not file.exists()


def test_switched_off_the_url_of_the_ledger_need_not_be_usable(new_app: NewApp) -> None:
    app = new_app("oracle://nobody@localhost/none", idem_enabled=False)
    assert Shop(app).note.apply(("x",)).result == "x"


def test_a_task_id_may_be_a_uuid(shop: Shop) -> None:
    task_id = uuid4()
    for _ in range(2):
        shop.note.apply(("x",), task_id=task_id)
    assert shop.done == ["x"]
    assert shop.row("note", str(task_id)).state is RunState.SUCCEEDED


def test_an_eager_call_stores_no_state(new_app: NewApp, file: Path) -> None:
    """As Celery's tracer: a call has no state STARTED, and its backend may be away."""
    away = "redis://127.0.0.1:1/0"
    app = new_app(f"sqlite:///{file}", task_track_started=True, result_backend=away)
    assert Shop(app).note.apply(("x",)).result == "x"


def test_a_class_may_stand_for_the_exceptions_that_a_task_throws(
    new_app: NewApp, file: Path
) -> None:
    app = new_app(f"sqlite:///{file}")
    declare: Any = app.task
    options = {"shared": False, "base": IdempotentTask, "throws": ValueError}

    def body() -> None: ...

    task = declare(**options)(body)
    assert task.throws == (ValueError, DuplicateRun)


def test_no_header_of_a_message_goes_around_the_claim(shop: Shop) -> None:
    """Celery makes attributes of the request of them, where we keep notes of our own."""
    headers = {
        "idem_entered": True,
        "idem_arguments": ["x"],
        "idem_key_made": "x",
        "idem_notes": {"progress": True, "arguments": "x", "key": "x"},
    }
    for _ in range(2):
        shop.note.apply(("x",), task_id="one", headers=headers)
    assert shop.done == ["x"]
    assert shop.row("note", "one").fence == 1


def test_no_header_of_a_message_is_taken_for_a_note_of_its_worker(shop: Shop) -> None:
    headers = {
        "idem_key_made": "x",
        "idem_unsent": ["x"],
        "idem_arguments": "x",
        "idem_notes": {"key": "x", "unsent": ["x"], "arguments": "x"},
    }
    assert shop.retries.apply((1,), task_id="one", headers=headers).result == 1
    assert shop.done == [0, 1]
    assert shop.row("retries", "one").state is RunState.SUCCEEDED


def test_what_a_body_did_to_its_arguments_is_seen_after_its_failure(
    new_app: NewApp, file: Path
) -> None:
    app = new_app(f"sqlite:///{file}")
    seen = []

    class Telling(IdempotentTask):
        abstract = True

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            seen.extend(args[0])

    @app.task(shared=False, base=Telling)
    def changes(done: list[str]) -> None:
        done.append("a step")
        raise ValueError("the rest fails")

    assert changes.apply(([],)).state == "FAILURE"
    assert seen == ["a step"]


def test_a_class_of_one_app_may_be_that_of_another_which_is_switched_off(
    new_app: NewApp, file: Path
) -> None:
    done: list[str] = []

    class Own(IdempotentTask):
        name = "own"

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            done.append("call")
            return super().__call__(*args, **kwargs)

        def before_start(self, *_: Any) -> None:
            done.append("before_start")

        def run(self) -> None:
            done.append("run")

    class Other(Own):
        name = "other"

    new_app(f"sqlite:///{file}").register_task(Own()).apply()
    assert done == ["before_start", "call", "run"]
    new_app(f"sqlite:///{file}", idem_enabled=False).register_task(Other()).apply()
    assert done == ["before_start", "call", "run"] * 2


def test_before_start_may_be_static(new_app: NewApp, file: Path) -> None:
    done: list[Any] = []

    class Own(IdempotentTask):
        abstract = True

        @staticmethod
        def before_start(task_id: str, args: Any, kwargs: Any) -> None:
            done.append(args)

    @new_app(f"sqlite:///{file}").task(shared=False, base=Own)
    def task(number: int) -> int:
        return number

    assert task.apply((7,)).result == 7
    assert done == [(7,)]


def test_an_eager_task_may_replace_itself(shop: Shop) -> None:
    assert shop.replaces.apply((2,)).result == "replaced"
    assert shop.done == [2, 1, 0]


def test_without_its_database_a_call_fails(new_app: NewApp) -> None:
    """There is no message that could be put back: the caller gets the error, nothing runs."""
    shop = Shop(new_app("postgresql://nobody@127.0.0.1:1/nothing"))
    result = shop.note.apply(("x",))
    assert isinstance(result.result, LedgerUnavailable)
    assert shop.done == []
    assert shop.unclaimed.apply().state == "SUCCESS"
    assert shop.done == ["unclaimed"]


def test_a_broken_stamp_is_refused(shop: Shop) -> None:
    """The caller gets the error; nothing runs."""
    result = shop.note.apply(("x",), headers={"idem_run_key": "k", "idem_slot": "yesterday"})
    assert isinstance(result.result, InvalidHeader)
    assert "idem_slot = 'yesterday'" in str(result.result)
    assert shop.done == []

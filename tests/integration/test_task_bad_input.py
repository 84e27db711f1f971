"""Broken messages, settings and databases: a clear error, nothing lost, and the others go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu.serialization import register

from celery_idem import InvalidHeader, RunKey
from celery_idem.errors import InvalidRunKey
from celery_idem.keys import (
    HEADER_ENTRY,
    HEADER_KEY,
    HEADER_SIGNATURE,
    HEADER_SLOT,
    Stamp,
    from_iso,
)
from celery_idem.run import RunState
from tests.integration.apps import base
from tests.integration.conftest import NewStage
from tests.integration.stage import APPS, NAMESPACE, PATIENCE, Stage
from tests.processes import Beat, ProcessFailed, Worker, wait_for
from tests.proxy import Proxy

SECRET = "a secret of the beats"
SLOT = "2026-03-29T01:30:00Z"
HALF = "half a pair \ud800"


@pytest.fixture(scope="module")
def worker(stage: Stage) -> Worker:
    """Two children; whoever sends a stamp is trusted."""
    return stage.worker("watched", "-c", "2")


@pytest.fixture(scope="module")
def signed(stage: Stage) -> Worker:
    """A worker that only trusts stamps that were signed."""
    settings = {"idem_signing_key": SECRET}
    return stage.worker("watched", "-c", "1", "-Q", "signed", settings=settings)


# -- headers -------------------------------------------------------------------------------------

#: Headers of a message that nobody wrote as they are, by what is said of them.
BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "key-number": ({HEADER_KEY: 5}, HEADER_KEY, "must be a str, not int"),
    "key-list": ({HEADER_KEY: ["k"], HEADER_SLOT: SLOT}, HEADER_KEY, "must be a str, not list"),
    "key-none": ({HEADER_KEY: None}, HEADER_KEY, "must be a str, not NoneType"),
    "key-empty": ({HEADER_KEY: ""}, HEADER_KEY, "must not be empty"),
    "key-long": ({HEADER_KEY: "k" * 256}, HEADER_KEY, "longer than 255 bytes"),
    "key-huge": ({HEADER_KEY: "k" * 100_000}, HEADER_KEY, "has 100000 bytes, 10000 are allowed"),
    "key-nul": ({HEADER_KEY: "a\0b"}, HEADER_KEY, "NUL"),
    "key-half": ({HEADER_KEY: HALF}, HEADER_KEY, "not valid Unicode"),
    "slot-alone": ({HEADER_SLOT: SLOT}, HEADER_KEY, "must be a str, not NoneType"),
    "slot-number": ({HEADER_KEY: "k", HEADER_SLOT: 5}, HEADER_SLOT, "not an ISO 8601 instant"),
    "slot-list": ({HEADER_KEY: "k", HEADER_SLOT: []}, HEADER_SLOT, "not an ISO 8601 instant"),
    "slot-word": ({HEADER_KEY: "k", HEADER_SLOT: "yesterday"}, HEADER_SLOT, "must end with 'Z'"),
    "slot-naive": ({HEADER_KEY: "k", HEADER_SLOT: SLOT[:-1]}, HEADER_SLOT, "must end with 'Z'"),
    "slot-month": ({HEADER_KEY: "k", HEADER_SLOT: "2026-13-01T00:00:00Z"}, HEADER_SLOT, "month"),
    "slot-offset": (
        {HEADER_KEY: "k", HEADER_SLOT: "2026-03-29T01:30:00+02:00Z"},
        HEADER_SLOT,
        f"not in the form {SLOT}",
    ),
    "slot-half": ({HEADER_KEY: "k", HEADER_SLOT: f"{HALF}Z"}, HEADER_SLOT, "not an ISO 8601"),
    "slot-long": ({HEADER_KEY: "k", HEADER_SLOT: "9" * 9999 + "Z"}, HEADER_SLOT, "not an ISO"),
    "entry-number": ({HEADER_KEY: "k", HEADER_ENTRY: 5}, HEADER_ENTRY, "must be a str, not int"),
    "entry-nul": ({HEADER_KEY: "k", HEADER_ENTRY: "a\0"}, HEADER_ENTRY, "NUL"),
    "entry-half": ({HEADER_KEY: "k", HEADER_ENTRY: HALF}, HEADER_ENTRY, "not valid Unicode"),
    "entry-huge": ({HEADER_KEY: "k", HEADER_ENTRY: "e" * 10_001}, HEADER_ENTRY, "10000 are"),
}


def assert_refused(stage: Stage, task_id: str, header: str, said: str, args: list[Any]) -> None:
    """The caller has an error that names the header; the content is kept; nothing ran."""
    with pytest.raises(InvalidHeader) as caught:
        stage.get(task_id)
    assert caught.value.header == header
    shown = str(caught.value)
    assert shown.startswith(f"message header {header} = ")
    assert said in shown
    assert len(shown) < 500
    (line,) = stage.history("note", task_id, "refused")
    assert line.detail is not None
    told, _, content = line.detail.partition("\n")
    assert said in told
    # A header of any size does not crowd out the arguments, which stand before it.
    assert content.startswith(json.dumps({"task": "tests.note", "args": args})[:-1])
    assert stage.effects(task_id) == []
    stage.wait_for_fact(task_id, "task_failure")
    assert stage.facts(task_id) == {"task_failure": 1, "run_refused": 1}
    assert stage.row("note", task_id) is None


@pytest.mark.parametrize(("headers", "header", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_header_is_a_failure(
    stage: Stage, worker: Worker, headers: dict[str, Any], header: str, said: str
) -> None:
    """Wrong type, empty, too long, NUL, half of a surrogate pair, no instant."""
    task_id = stage.send("note", "kept", headers=headers)
    assert_refused(stage, task_id, header, said, ["kept"])


def forged() -> dict[str, tuple[dict[str, Any], str]]:
    """Headers that were not made with the beats' secret."""
    key = RunKey(f"{NAMESPACE}:bill@{SLOT}", from_iso(SLOT))
    good = Stamp(key, "bill").write(None, "tests.note", SECRET)
    reason = "it was not made with this app's idem_signing_key"
    return {
        "none": (Stamp(key, "bill").write(None, "tests.note"), reason),
        "other-secret": (Stamp(key, "bill").write(None, "tests.note", "guess"), reason),
        "other-task": (Stamp(key, "bill").write(None, "tests.add", SECRET), reason),
        "other-key": ({**good, HEADER_KEY: "tests:other"}, reason),
        "other-slot": ({**good, HEADER_SLOT: "2026-03-29T02:30:00Z"}, reason),
        "other-entry": ({**good, HEADER_ENTRY: "other"}, reason),
        "no-entry": ({k: v for k, v in good.items() if k != HEADER_ENTRY}, reason),
        "number": ({**good, HEADER_SIGNATURE: 5}, reason),
        "empty": ({**good, HEADER_SIGNATURE: ""}, reason),
        "nul": ({**good, HEADER_SIGNATURE: good[HEADER_SIGNATURE] + "\0"}, reason),
        "half": ({**good, HEADER_SIGNATURE: HALF}, reason),
        "huge": ({**good, HEADER_SIGNATURE: "f" * 100_000}, reason),
    }


@pytest.mark.parametrize(("headers", "said"), forged().values(), ids=forged())
def test_a_forged_stamp_is_a_failure(
    stage: Stage, signed: Worker, headers: dict[str, Any], said: str
) -> None:
    """With idem_signing_key, only who knows it can name a run."""
    task_id = stage.send("note", "kept", headers=headers, queue="signed")
    assert_refused(stage, task_id, HEADER_SIGNATURE, said, ["kept"])


def test_a_signed_stamp_is_accepted(stage: Stage, signed: Worker) -> None:
    """The same secret on both sides; messages without a stamp need none."""
    key = RunKey(f"{NAMESPACE}:signed@{SLOT}", from_iso(SLOT))
    headers = Stamp(key, "signed").write(None, "tests.note", SECRET)
    assert stage.get(stage.send("note", "signed", headers=headers, queue="signed")) == "signed"
    row = stage.ledger.read(key)
    assert row is not None and row.state is RunState.SUCCEEDED
    assert stage.get(stage.send("note", "unsigned", queue="signed")) == "unsigned"


@pytest.mark.parametrize(
    ("task_id", "said"),
    # Half of a surrogate pair cannot even be published: the result backend refuses it.
    [("nul \0", "NUL"), ("i" * 10_001, "10000 are allowed")],
    ids=["nul", "huge"],
)
def test_a_task_id_that_names_no_run_is_a_failure(
    stage: Stage, worker: Worker, task_id: str, said: str
) -> None:
    """Its content is kept under what can be shown of it."""
    stage.send("add", 7, task_id=task_id)
    with pytest.raises(InvalidRunKey, match=said):
        stage.get(task_id)
    (line,) = stage.history("add", repr(task_id)[:100], "refused")
    assert line.detail is not None
    assert json.loads(line.detail.partition("\n")[2])["args"] == [7]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Case", "case"),
        ("space", "space "),
        ("cafe", "café"),
        ("é", "e\u0301"),
        ("x" * 300 + "1", "x" * 300 + "2"),
        ("🎉", "🎊"),
    ],
    ids=["case", "space", "accent", "composed", "long", "emoji"],
)
def test_task_ids_that_differ_are_two_runs(
    stage: Stage, worker: Worker, one: str, other: str
) -> None:
    """Keys are compared byte by byte, whatever the database's collation is."""
    for task_id in (one, other):
        stage.send("note", task_id=task_id)
        assert stage.get(task_id) == ""
        assert stage.effects(task_id) == ["note"]
        assert not stage.history("note", task_id)


def test_other_tasks_go_on_beside_broken_messages(stage: Stage, worker: Worker) -> None:
    """In one queue, in between."""
    good = []
    for number in range(10):
        stage.send("note", headers={HEADER_KEY: number})
        good.append(stage.send("note", str(number)))
    assert [stage.get(task_id) for task_id in good] == [str(number) for number in range(10)]


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "settings", "said"),
    [
        ("tasks", {"idem_leese": 5}, "did you mean 'idem_lease'?"),
        ("tasks", {"idem_lease": 0}, "idem_lease = 0 is not possible: it must be between 1"),
        ("misconfigured", {}, "max_attempts of task tests.careless = 0 is not possible"),
        ("django_style", {"idem_leese": 5}, "did you mean 'idem_lease'?"),
    ],
    ids=["unknown", "impossible", "option", "django"],
)
def test_a_worker_does_not_start_with_a_mistake(
    stage: Stage, module: str, settings: dict[str, Any], said: str
) -> None:
    """The end of its output says what is wrong and what is allowed."""
    with pytest.raises(ProcessFailed) as failed, stage.new_worker(module, settings=settings):
        pass
    assert said in str(failed.value).splitlines()[-1]


#: URLs of no use whatever the network is like, by what is said of them.
IMPOSSIBLE = [
    (
        "oracle://u:swordfish@127.0.0.1/x",
        "'oracle://u:***@127.0.0.1/x' is not possible: it must begin with postgresql, mysql, ",
    ),
    ("postgresql+asyncpg://u:swordfish@127.0.0.1/x", "use postgresql://"),
    ("sqlite:////no/such/folder/ledger.sqlite3", "there is no folder /no/such/folder: create it"),
]
IDS = ["unknown", "driver", "folder"]


def assert_told(log: str, said: str) -> None:
    """The last line is the error."""
    last = log.splitlines()[-1]
    assert "ImproperlyConfigured: idem_database_url = " in last
    assert said in last
    assert "swordfish" not in log


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize(("url", "said"), IMPOSSIBLE, ids=IDS)
def test_a_worker_does_not_start_with_a_url_that_can_never_work(
    stage: Stage, pool: str, url: str, said: str
) -> None:
    """Rather than to put messages back for ever."""
    wrong = stage.new_worker("watched", "-P", pool, settings={"idem_database_url": url})
    with pytest.raises(ProcessFailed), wrong:
        pass
    assert wrong.returncode == 1
    assert_told(wrong.log, said)


@pytest.mark.parametrize(("url", "said"), IMPOSSIBLE, ids=IDS)
def test_a_beat_does_not_start_with_a_url_that_can_never_work(
    stage: Stage, url: str, said: str
) -> None:
    """It says the same as a worker."""
    settings = {**stage.settings, "idem_database_url": url}
    env = {base.SETTINGS: json.dumps(settings)}
    beat = Beat(f"{APPS}.tasks", stage.directory, "-S", "idem", env=env)
    # The beat's text for "ready" is said before it has looked at anything.
    beat.start()
    try:
        wait_for(lambda: not beat.running, PATIENCE, beat.tail)
        assert beat.returncode == 1
        assert_told(beat.log, said)
    finally:
        beat.kill()


def test_settings_of_a_django_project_reach_the_worker(stage: Stage) -> None:
    """CELERY_IDEM_LEASE under config_from_object(namespace="CELERY")."""
    settings = {"idem_lease": 77, "task_default_queue": "django"}
    with stage.new_worker("django_style", "-P", "solo", settings=settings):
        task_id = stage.send("lease", queue="django")
        assert stage.get(task_id) == 77.0
        stage.send("lease", task_id=task_id, queue="django")
        stage.wait_for_duplicates("lease", task_id)
        assert stage.effects(task_id) == ["lease"]


# -- databases -----------------------------------------------------------------------------------


@pytest.fixture
def proxy(module_postgres: str) -> Iterator[Proxy]:
    """In front of the ledger's database."""
    with Proxy.before(module_postgres) as proxy:
        yield proxy


def test_a_worker_starts_without_its_database(
    new_stage: NewStage, module_postgres: str, proxy: Proxy
) -> None:
    """It comes later: messages wait for it, and run once."""
    stage = new_stage(ledger=proxy.url(module_postgres))
    proxy.cut()
    worker = stage.worker("watched", "-P", "solo")
    task_id = stage.send("note", "waited")
    stage.wait_for_fact(task_id, "run_put_back")
    proxy.mend()
    assert stage.get(task_id) == "waited"
    assert stage.effects(task_id) == ["note"]
    assert "does not answer" in worker.log
    assert "Traceback" not in worker.log


def test_with_a_wrong_database_url_messages_wait(stage: Stage, worker: Worker) -> None:
    """They are put back with the reason in the log, until a worker has the right URL."""
    queue = str(uuid4())
    settings = {"idem_database_url": "postgresql://u:swordfish@127.0.0.1:1/x"}
    with stage.new_worker("watched", "-P", "solo", "-Q", queue, settings=settings) as wrong:
        task_id = stage.send("note", "waited", queue=queue)
        stage.wait_for_fact(task_id, "run_put_back")
        assert stage.effects(task_id) == []
        assert "does not answer" in wrong.log
        assert "idem_database_url" in wrong.log
        assert "swordfish" not in wrong.log
        assert "Traceback" not in wrong.log
        assert wrong.stop() == 0
    stage.consume(worker, queue)
    assert stage.get(task_id) == "waited"
    assert stage.effects(task_id) == ["note"]


def test_a_ledger_of_another_version_is_not_touched(new_stage: NewStage) -> None:
    """Messages wait until the tables fit; the log says what to do."""
    stage = new_stage()
    stage.ledger.now()
    (fitting,) = stage.sql("SELECT version_num FROM celery_idem_version")[0]
    stage.sql("UPDATE celery_idem_version SET version_num = '0000'")
    worker = stage.worker("watched", "-P", "solo")
    task_id = stage.send("note", "waited")
    stage.wait_for_fact(task_id, "run_put_back")
    assert f"the ledger has version 0000, this celery_idem needs {fitting}" in worker.log
    assert "run 'celery -A PROJECT idem upgrade'" in worker.log
    stage.sql("UPDATE celery_idem_version SET version_num = '9999'")
    stage.wait_for_fact(task_id, "run_put_back", 2)
    assert f"the ledger has version 9999, this celery_idem needs {fitting}" in worker.log
    assert "install the celery-idem release that made these tables" in worker.log
    assert "Traceback" not in worker.log
    stage.sql("UPDATE celery_idem_version SET version_num = %s", fitting)
    assert stage.get(task_id) == "waited"
    assert stage.effects(task_id) == ["note"]
    worker.kill()


# -- forms of a message --------------------------------------------------------------------------


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_a_message_keeps_its_form(
    new_stage: NewStage, module_postgres: str, proxy: Proxy, broker: str
) -> None:
    """Put back and retried with the serializer and compression with which it came.

    JSON, which is the task's own serializer, has no sets, and no numbers as keys.
    """
    url = proxy.url(module_postgres)
    stage = new_stage(broker, url, accept_content=["json", "yaml"])
    proxy.cut()
    worker = stage.worker("watched", "-c", "1")
    task_id = stage.send("formed", {1: {2}}, serializer="yaml", compression="gzip")
    stage.wait_for_fact(task_id, "run_put_back")
    proxy.mend()
    stage.wait_for_success("formed", task_id)
    assert stage.details(task_id) == ["{1: {2}} application/x-gzip"] * 2
    assert "cannot be published anew" not in worker.log
    assert "Traceback" not in worker.log


def test_a_message_that_cannot_be_published_anew_is_not_lost(
    new_stage: NewStage, module_postgres: str, proxy: Proxy
) -> None:
    """The broker keeps it, and the log does not say that it is the broker's fault."""
    register("sealed", json.dumps, json.loads, "application/x-sealed", "utf-8")
    url = proxy.url(module_postgres)
    stage = new_stage(ledger=url, accept_content=["json", "sealed"])
    proxy.cut()
    worker = stage.worker("watched", "-c", "1")
    task_id = stage.send("note", "kept", serializer="sealed")
    stage.wait_for_fact(task_id, "run_put_back", 2)
    proxy.mend()
    assert stage.get(task_id) == "kept"
    assert stage.effects(task_id) == ["note"]
    assert "it cannot be published anew: EncodeError(" in worker.log
    assert "sealed messages can only be read here" in worker.log
    assert "the broker does not answer" not in worker.log

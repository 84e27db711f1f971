"""Fixtures that every test may use: real servers, and what a failed test shows.

Owns: which servers this run uses, the cost marker of a test (its folder's name), the list of what
was skipped for want of a server.
Must not know: what is tested.

PostgreSQL and Redis come from wheels where nothing else is there: without them a test fails. Where
MariaDB, MySQL or RabbitMQ is missing, tests are skipped, and the end of the run says what to
install.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import processes, sample, services
from tests.services.base import Kind

HERE = Path(__file__).parent
COSTS = ("unit", "model", "contract", "integration", "contrib", "acceptance", "docs")
#: The files that take longest come first: at the end of a run, no process is to be at one of them
#: while the others have nothing left to do.
LONGEST = """
    acceptance/test_demo.py
    model/test_search.py
    integration/test_outside_schedulers.py
    integration/test_beat_policies.py
    integration/test_task_redelivery.py
    acceptance/test_matrix.py
    model/test_locks.py
    integration/test_task_shutdown.py
    contract/test_lock_faults.py
    integration/test_task_broker_down.py
    integration/test_task_storm.py
    integration/test_beat_outages.py
    integration/test_task_bad_input.py
    integration/test_outside_exec.py
    chaos/test_campaign.py
    contract/test_commit_unknown.py
    integration/test_task_pools.py
    integration/test_task_locks.py
    integration/test_task_killed.py
    integration/test_beat_deaths.py
    docs/test_bench.py
    integration/test_bootstrap.py
    unit/test_slots_crontab.py
""".split()
#: These may never be skipped.
REQUIRED = ("PostgreSQL", "Redis")
DATABASES = ["postgres", "mariadb", "sqlite"]
if services.MYSQL.variable in os.environ:
    DATABASES.append("mysql")

used = pytest.StashKey[list[str]]()
missing = pytest.StashKey[Counter[str]]()
found = pytest.StashKey["Found"]()
left_out = pytest.StashKey[int]()


class Found:
    """The servers of this run: each is found or started when a test first asks for it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._stack = ExitStack()
        self._services: dict[str, services.Service | services.ServiceMissing] = {}
        # Not below pytest's own folder: other users may not enter that, and PostgreSQL does not
        # run as root. Short, for the sake of Unix sockets.
        self.directory = Path(tempfile.mkdtemp(prefix="idem-"))
        self.directory.chmod(0o755)
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)

    def get(self, kind: Kind) -> services.Service:
        """The server of this kind; skips the test, or fails it, where there is none."""
        if kind.title not in self._services:
            self._services[kind.title] = self._find(kind)
        service = self._services[kind.title]
        if isinstance(service, services.Service):
            return service
        # A URL that somebody set and that does not work is a mistake, not an absence.
        if kind.title in REQUIRED or kind.variable in os.environ:
            pytest.fail(str(service), pytrace=False)
        self.config.stash[missing][str(service)] += 1
        pytest.skip(str(service))

    def close(self) -> None:
        """Stops what was started."""
        self._stack.close()

    def _find(self, kind: Kind) -> services.Service | services.ServiceMissing:
        try:
            service = services.find_service(kind, self.directory / kind.title.lower())
        except services.ServiceMissing as error:
            return error
        self._stack.callback(service.close)
        self.config.stash[used].append(str(service))
        return service


def pytest_configure(config: pytest.Config) -> None:
    """Makes room for what the end of the run reports."""
    config.stash[used] = []
    config.stash[missing] = Counter()
    config.stash[left_out] = 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks each test with its cost, the name of its folder; takes the sample; sorts the files."""
    for item in items:
        if HERE in item.path.parents:
            cost = item.path.relative_to(HERE).parts[0]
            if cost in COSTS:
                item.add_marker(cost)
    if not _are_named(config):
        items[:], left = sample.divide(items)
        config.stash[left_out] = len(left)
        config.hook.pytest_deselected(items=left)
    ranks = {HERE / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def _are_named(config: pytest.Config) -> bool:
    """True if single tests are asked for."""
    return any("::" in str(argument) for argument in config.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attaches the end of each log of this test's processes to a failure."""
    report = yield
    if report.failed:
        report.sections += [
            (f"log of {process.name}", process.tail()) for process in processes.of_this_test
        ]
    # Half a surrogate pair, which some tests log, cannot pass between the processes of a run.
    report.sections = [(name, printable(text)) for name, text in report.sections]
    if report.failed and printable(report.longreprtext) != report.longreprtext:
        report.longrepr = printable(report.longreprtext)
    return report


def printable(text: str) -> str:
    """``text`` with an escape for each character that cannot be encoded."""
    return text.encode(errors="backslashreplace").decode()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forgets the processes of the test before, save those that a module shares."""
    processes.of_this_test[:] = [p for p in processes.of_this_test if p.running]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Lets the process that reports know, if this is one of several that run tests."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["used"] = session.config.stash[used]
        counted = session.config.stash[missing]
        output["missing"] = dict(counted)
        output["left_out"] = session.config.stash[left_out]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes over what one of several processes used and missed."""
    # A process that crashed has left nothing.
    output = getattr(node, "workeroutput", {})
    lines = node.config.stash[used]
    lines += [line for line in output.get("used", []) if line not in lines]
    node.config.stash[missing].update(output.get("missing", {}))
    # Each has collected all tests.
    node.config.stash[left_out] = max(node.config.stash[left_out], output.get("left_out", 0))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Says which servers were used, and which were missed by how many tests."""
    lines = [f"used     {line}" for line in config.stash[used]]
    lines += [f"MISSING  {line}: {n} tests skipped" for line, n in config.stash[missing].items()]
    if config.stash[left_out]:
        lines.append(
            f"SAMPLE   {config.stash[left_out]} tests are left out, which differ from others in "
            "their parameters: `make thorough` runs them"
        )
    if lines:
        terminalreporter.section("servers")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def servers(pytestconfig: pytest.Config) -> Iterator[Found]:
    """The servers of this run."""
    result = Found(pytestconfig)
    try:
        yield result
    finally:
        result.close()


@pytest.fixture
def postgres_url(servers: Found) -> Iterator[str]:
    """SQLAlchemy's URL of a PostgreSQL database for this test alone."""
    with servers.get(services.POSTGRES).place() as url:
        yield url


@pytest.fixture
def mariadb_url(servers: Found) -> Iterator[str]:
    """SQLAlchemy's URL of a MariaDB database for this test alone."""
    with servers.get(services.MARIADB).place() as url:
        yield url


@pytest.fixture
def mysql_url(servers: Found) -> Iterator[str]:
    """SQLAlchemy's URL of a MySQL database for this test alone; only where one is named."""
    with servers.get(services.MYSQL).place() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """SQLAlchemy's URL of an SQLite file for this test alone."""
    return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy's URL of an empty database, on each kind of server."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def redis_url(servers: Found) -> Iterator[str]:
    """URL of a Redis database with nothing in it."""
    with servers.get(services.REDIS).place() as url:
        yield url


@pytest.fixture
def rabbitmq_url(servers: Found) -> Iterator[str]:
    """URL of a RabbitMQ virtual host with nothing in it."""
    with servers.get(services.RABBITMQ).place() as url:
        yield url


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> services.Broker:
    """An empty message broker, of each kind."""
    return services.Broker(request.param, request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(scope="session")
def acceptance_seconds() -> float:
    """How long an acceptance test lets the system run (IDEM_ACCEPTANCE_SECONDS)."""
    return float(os.environ.get("IDEM_ACCEPTANCE_SECONDS", "6"))

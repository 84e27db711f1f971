"""Servers and stages for the tests of one module, whose workers are shared.

Must not know: what is tested. A module that uses these must not use `redis_url` and the like of its
own: there is one Redis database for all tests of a run, emptied whenever it is handed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests import services
from tests.conftest import Found
from tests.integration.stage import Stage
from tests.processes import Worker


class NewStage(Protocol):
    """Makes a stage; see `Stage` for the settings. A ledger, or RabbitMQ, may be given as a URL."""

    def __call__(
        self,
        broker: str = "redis",
        ledger: str = "postgres",
        transport_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Stage: ...


@pytest.fixture(scope="module")
def module_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the logs and files of this module."""
    return tmp_path_factory.mktemp("stage")


@pytest.fixture(scope="module")
def module_postgres(servers: Found) -> Iterator[str]:
    """SQLAlchemy's URL of a PostgreSQL database for this module alone."""
    with servers.get(services.POSTGRES).place() as url:
        yield url


@pytest.fixture(scope="module")
def module_redis(servers: Found) -> Iterator[str]:
    """URL of a Redis database for this module alone."""
    with servers.get(services.REDIS).place() as url:
        yield url


@pytest.fixture(scope="module")
def new_stage(servers: Found, module_directory: Path, module_redis: str) -> Iterator[NewStage]:
    """Makes stages, each with a database and queues of its own, for this module."""
    with ExitStack() as stack:

        def place(kind: Any) -> str:
            return stack.enter_context(servers.get(kind).place())

        def broker_of(name: str, options: dict[str, Any]) -> services.Broker:
            if name == "redis":
                # A prefix of its own: stages of one module share the Redis database. More than
                # kombu's ten connections, as each of many greenlets acknowledges on its own.
                own = {"global_keyprefix": f"{len(stages)}:", "max_connections": 100}
                options = {**own, **options}
                return services.Broker(name, module_redis, options)
            url = name if "://" in name else place(services.RABBITMQ)
            return services.Broker("rabbitmq", url, options)

        def ledger_of(name: str, database: str) -> str:
            if name == "sqlite":
                return f"sqlite:///{module_directory / f'ledger{len(stages)}.sqlite3'}"
            if name == "mariadb":
                return place(services.MARIADB)
            return name if "://" in name else database

        def make(
            broker: str = "redis",
            ledger: str = "postgres",
            transport_options: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Stage:
            database = place(services.POSTGRES)
            stage = Stage(
                module_directory,
                broker_of(broker, transport_options or {}),
                module_redis,
                database,
                **{"ledger": ledger_of(ledger, database), **settings},
            )
            stack.callback(stage.close)
            stages.append(stage)
            return stage

        stages: list[Stage] = []
        yield make


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL; modules that need another one have their own."""
    return new_stage()


@pytest.fixture(scope="module")
def worker(stage: Stage) -> Worker:
    """Four children; modules that need another one have their own."""
    return stage.worker("watched", "-c", "4")

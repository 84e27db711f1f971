"""One ledger of each kind for the whole run, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import services
from tests.conftest import DATABASES, Found
from tests.contract.shop import Shop
from tests.contract.stores import Store
from tests.services.base import Kind

KINDS: dict[str, Kind] = {
    "postgres": services.POSTGRES,
    "mariadb": services.MARIADB,
    "mysql": services.MYSQL,
}


class Stores:
    """The stores of this run: each is made when a test first asks for it."""

    def __init__(self, servers: Found, directory: Path) -> None:
        self._servers = servers
        self._directory = directory
        self._stack = ExitStack()
        self._made: dict[str, Store] = {}

    def get(self, name: str) -> Store:
        if name not in self._made:
            self._made[name] = self._make(name)
        store = self._made[name]
        store.clear()
        return store

    def close(self) -> None:
        for store in self._made.values():
            store.ledger.close()
        self._stack.close()

    def _make(self, name: str) -> Store:
        if name == "memory":
            return Store.in_memory()
        if name == "sqlite":
            return Store.at(name, f"sqlite:///{self._directory / 'ledger.sqlite3'}")
        place = self._servers.get(KINDS[name]).place()
        return Store.at(name, self._stack.enter_context(place))


@pytest.fixture(scope="session")
def stores(servers: Found, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    made = Stores(servers, tmp_path_factory.mktemp("ledger"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=["memory", *DATABASES])
def store(request: pytest.FixtureRequest, stores: Stores) -> Store:
    """An empty ledger, of each kind."""
    return stores.get(request.param)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, stores: Stores) -> Store:
    """An empty ledger in a database, of each kind: processes can share it."""
    return stores.get(request.param)


@pytest.fixture(params=[name for name in DATABASES if name != "sqlite"])
def server(request: pytest.FixtureRequest, stores: Stores) -> Store:
    """An empty ledger on a database server, of each kind."""
    return stores.get(request.param)


@pytest.fixture
def postgres(stores: Stores) -> Store:
    """An empty ledger on PostgreSQL."""
    return stores.get("postgres")


@pytest.fixture
def shop(database: Store) -> Shop:
    """A business table beside the ledger, on each kind of database."""
    return Shop(database)


@pytest.fixture
def server_shop(server: Store) -> Shop:
    """The same on each kind of server."""
    return Shop(server)

"""Whatever a session, a role or a database has as its default, the ledger is the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import create_engine, inspect, text

from celery_idem.clock import UTC
from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, NewSlot, emission
from celery_idem.ledger.schema import metadata
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, RunState
from tests.contract.stores import LONG, NAMESPACE, Store, fresh, isolated, new_slots
from tests.contract.together import in_threads


def in_zone(store: Store, hours: int) -> Store:
    """The same tables through sessions of another time zone."""
    if store.name == "postgres":
        # The sign is turned round in this form (POSIX).
        arguments = {"options": f"-c timezone={-hours:+d}"}
    else:
        arguments = {"init_command": f"SET time_zone = '{hours:+03d}:00'"}
    return replace(store, ledger=SqlLedger(store.url, engine_options={"connect_args": arguments}))


@pytest.mark.parametrize("hours", [-5, 9])
def test_a_session_in_another_time_zone_sees_the_same_instants(server: Store, hours: int) -> None:
    away = in_zone(server, hours)
    offset = "SHOW timezone" if server.name == "postgres" else "SELECT @@session.time_zone"
    (zone,) = away.sql._run(text(offset)).rows[0]
    assert str(abs(hours)) in zone
    assert abs((away.ledger.now() - server.ledger.now()).total_seconds()) < 60
    slot = datetime(2026, 3, 8, 7, 30, 0, 123_456, tzinfo=UTC)
    for writer, reader in ((server, away), (away, server)):
        key = RunKey(fresh("run"), slot)
        new = NewSlot(key, NAMESPACE, "daily", "shop.bill", deadline=slot + timedelta(days=1))
        writer.ledger.insert_slots([new], "batch")
        assert reader.row(key).due_at == slot
        assert reader.row(key).deadline == slot + timedelta(days=1)
        assert reader.ledger.acquire_due(NAMESPACE, 10, "early") == []
        lease = writer.lease(LONG)
        claim = writer.claim(key, lease=lease)
        left = reader.row(key).lease_seconds
        assert left is not None and LONG - 60 < left <= LONG
        assert reader.ledger.renew([lease], LONG) == {lease}
        reader.ledger.end(key, claim.fence, RunState.SUCCEEDED)
        assert writer.stand(key) == reader.stand(key)
    away.ledger.close()


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_stricter_isolation_changes_nothing(
    postgres: Store, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(postgres, ledger=isolated(postgres.url, level))
    assert strict.sql._run(text("SHOW transaction_isolation")).rows[0][0] == level
    slots = new_slots(200)
    parts = in_threads(4, lambda n: strict.ledger.insert_slots(slots[n * 10 :], fresh("batch")))
    times = Counter(key for part in parts for key in part)
    assert times == {slot.key: 1 for slot in slots}
    strict.let_pass(HANDOVER)
    # Nobody loses what it has won, however long a busy machine lets it wait.
    monkeypatch.setattr(emission, "HANDOVER", 600.0)
    parts = in_threads(
        4, lambda n: {row.key for row in strict.ledger.acquire_due(NAMESPACE, 1000, fresh("b"))}
    )
    times = Counter(key for part in parts for key in part)
    assert times == {slot.key: 1 for slot in slots}
    lease = strict.lease()
    for slot in slots[:5]:
        claims = in_threads(8, lambda n, key=slot.key: strict.claim(key, lease=lease))  # type: ignore[misc]
        outcomes = Counter(claim.outcome for claim in claims)
        assert outcomes == {ClaimOutcome.CLAIMED: 1, ClaimOutcome.RUNNING: 7}
    strict.ledger.close()


def test_the_tables_in_a_schema_of_their_own(postgres_url: str) -> None:
    schema = 'The "Ledger"'
    there = Store("schema", SqlLedger(postgres_url, schema=schema), postgres_url)
    key = RunKey("shop:daily")
    claim = there.claim(key)
    there.ledger.record("duplicate", key)
    there.ledger.activate(NAMESPACE, [("daily", "f1")])
    assert len(there.scheduled(3)) == 3
    there.let_pass(HANDOVER)
    assert len(there.ledger.acquire_due(NAMESPACE, 10, "batch")) == 3
    there.ledger.end(key, claim.fence, RunState.SUCCEEDED)
    assert there.ledger.counts() == {"scheduled": 3, "succeeded": 1, "duplicate": 1}
    engine = create_engine(there.sql.database.url)
    names = {*metadata.tables, "celery_idem_version"}
    assert set(inspect(engine).get_table_names(schema=schema)) == names
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    second = SqlLedger(postgres_url, schema=schema, create_tables=False)
    assert second.counts() == there.ledger.counts()
    elsewhere = Store("public", SqlLedger(postgres_url), postgres_url)
    assert elsewhere.claim(key).fence == 1
    for ledger in (there.ledger, second, elsewhere.ledger):
        ledger.close()


def test_defaults_of_the_server_do_not_reach_the_tables(mariadb_url: str) -> None:
    """Latin letters only, and an engine that locks whole tables and cannot roll back."""
    arguments = {"init_command": "SET default_storage_engine = MyISAM, sql_mode = ''"}
    store = Store(
        "latin", SqlLedger(mariadb_url, engine_options={"connect_args": arguments}), mariadb_url
    )
    engine = create_engine(store.sql.database.url)
    with engine.begin() as connection:
        connection.execute(text("ALTER DATABASE CHARACTER SET latin1"))
    key, claim = store.owned(RunKey("shop:😀"))
    store.ledger.end(key, claim.fence, RunState.FAILED, "ValueError: 😀 ж")
    row = store.row(key)
    assert (row.key, row.error) == (key, "ValueError: 😀 ж")
    with engine.begin() as connection:
        engines = connection.execute(
            text("SELECT engine FROM information_schema.tables WHERE table_name IN :names"),
            {"names": tuple(metadata.tables)},
        ).scalars()
        assert set(engines) == {"InnoDB"}
    engine.dispose()
    store.ledger.close()

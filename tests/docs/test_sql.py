"""The SQL of the documents runs on a real ledger."""

from __future__ import annotations

import psycopg
import pytest

from celery_idem import Ledger, RunKey, RunState
from celery_idem.ledger import LockRequest
from celery_idem.run import ClaimRequest
from tests.docs.markdown import Block, all_blocks

BLOCKS = all_blocks("sql")


def statements(block: Block) -> list[str]:
    """The statements of a block."""
    return [text.strip() for text in block.text.split(";") if text.strip()]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_sql_runs(block: Block, postgres_url: str) -> None:
    ledger = Ledger.from_url(postgres_url)
    ledger.now()
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in statements(block):
            connection.execute(statement)
    ledger.close()


def test_pruning_keeps_what_is_open_or_young(postgres_url: str) -> None:
    (pruning,) = [block for block in BLOCKS if "DELETE" in block.text]
    ledger = Ledger.from_url(postgres_url)
    old, young, running = (RunKey(name) for name in ("old", "young", "running"))
    for key in (old, young, running):
        ledger.claim(
            ClaimRequest(key, "task", "shop", None, None, 0, f"lease-{key}", f"claim-{key}")
        )
    for key in (old, young):
        ledger.end(key, 1, RunState.SUCCEEDED)
    for name in ("held", "free"):
        taken = ledger.take(LockRequest(name, "lease-running", f"claim-{name}"))
        assert taken is not None and (name == "held" or ledger.release_seat(taken))
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("UPDATE celery_idem_locks SET taken_at = now() - interval '31 days'")
        connection.execute(
            "UPDATE celery_idem_runs SET created_at = now() - interval '31 days', "
            "finished_at = now() - interval '31 days' WHERE run_key = 'old'"
        )
        connection.execute(
            "UPDATE celery_idem_runs SET created_at = now() - interval '31 days' "
            "WHERE run_key = 'running'"
        )
        for statement in statements(pruning):
            connection.execute(statement)
    assert [bool(ledger.read(key)) for key in (old, young, running)] == [False, True, True]
    assert [name for name, _ in ledger.held_locks()] == ["held"]
    assert ledger.read_seats("free", 1) == []
    ledger.close()

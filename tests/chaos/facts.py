"""What is found when the dust has settled.

Owns reading the witness's files and the tables, past all proxies. Must not judge.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos import witness

Row = dict[str, Any]


@dataclass
class Seen:
    """A body; times in seconds since boot.

    Attributes:
        ended_at: None if it was not seen to end.
        trusted_until: as far as it has told.
        finished: the ledger has told it that its run has succeeded.
    """

    id: str
    task: str
    key: str
    entry: str | None
    fence: int
    retries: int
    pid: int
    began_at: float
    trusted_until: float
    ended_at: float | None = None
    how: str | None = None
    finished: bool = False


@dataclass
class Facts:
    """Everything, in the order in which it happened."""

    bodies: dict[str, Seen] = field(default_factory=dict)
    effects: list[Row] = field(default_factory=list)
    runs: dict[str, Row] = field(default_factory=dict)
    history: dict[str, list[Row]] = field(default_factory=dict)
    leases: list[Row] = field(default_factory=list)
    #: Seconds since the epoch at which `witness.clock` was 0.
    booted_at: float = 0.0

    def lines(self, kind: str, key: str | None = None) -> list[Row]:
        """Lines of the ledger's history, of one run or of all."""
        groups = [self.history.get(key, [])] if key else self.history.values()
        return [line for lines in groups for line in lines if line["kind"] == kind]


def gather(conninfo: str, folder: Path) -> Facts:
    """All there is."""
    facts = Facts(bodies=_bodies(folder), booted_at=time.time() - witness.clock())
    facts.effects = read(conninfo, "SELECT * FROM chaos_effects ORDER BY at")
    for run in read(conninfo, "SELECT * FROM celery_idem_runs ORDER BY slot, run_key"):
        facts.runs[run["run_key"]] = run
    history: defaultdict[str, list[Row]] = defaultdict(list)
    for line in read(conninfo, "SELECT * FROM celery_idem_history ORDER BY at, id"):
        history[line["run_key"]].append(line)
    facts.history = dict(history)
    facts.leases = read(conninfo, "SELECT * FROM celery_idem_leases ORDER BY expires_at")
    return facts


def read(conninfo: str, statement: str, *parameters: Any) -> list[Row]:
    """The rows of a statement; none if the server is away, or has no such table yet."""
    try:
        with psycopg.connect(conninfo, row_factory=dict_row, connect_timeout=5) as connection:
            return connection.execute(statement.encode(), parameters or None).fetchall()
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        return []


def _bodies(folder: Path) -> dict[str, Seen]:
    bodies: dict[str, Seen] = {}
    finished: set[tuple[str, int]] = set()
    for line in witness.read_all(folder):
        if line["kind"] == "finished":
            finished.add((line["key"], line["fence"]))
        elif line["kind"] == "begin":
            bodies[line["body"]] = Seen(
                line["body"],
                line["task"],
                line["key"],
                line["entry"],
                line["fence"],
                line["retries"],
                line["pid"],
                line["at"],
                line["trusted_until"],
            )
        elif line["kind"] in ("trust", "end"):
            seen = bodies[line["body"]]
            seen.trusted_until = max(seen.trusted_until, line["trusted_until"])
            if line["kind"] == "end":
                seen.ended_at, seen.how = line["at"], line["how"]
    for seen in bodies.values():
        seen.finished = (seen.key, seen.fence) in finished
    return dict(sorted(bodies.items(), key=lambda item: item[1].began_at))

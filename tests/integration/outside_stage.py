"""Programs without Celery in processes of their own.

Owns: how they are started, and what their tables say. Must not know: what is tested.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, select
from sqlalchemy.pool import NullPool

from tests.integration.outside_apps.periodic import calls, effects, metadata
from tests.processes import CeleryProcess

PERIODIC = "tests.integration.outside_apps.periodic"


class Program(CeleryProcess):
    """``python -m MODULE ...``, ready once it says so."""

    command = "program"
    ready_text = "ready"

    def __init__(self, module: str, directory: Path, *arguments: str) -> None:
        super().__init__(module, directory)
        self._command = [sys.executable, "-m", module, *arguments]


class Watch:
    """What three of them do."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url, poolclass=NullPool)
        metadata.create_all(self._engine)

    def effects(self) -> Counter[int]:
        """How often each interval took effect."""
        with self._engine.connect() as connection:
            return Counter(connection.execute(select(effects.c.slot)).scalars())

    def called(self) -> set[int]:
        """The intervals in which a call began and ended: one of their calls was executed."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(calls.c.began, calls.c.ended)).all()
        return {began for began, ended in rows if began == ended}

    def calls(self) -> int:
        """How many there were."""
        with self._engine.connect() as connection:
            return len(connection.execute(select(calls.c.began)).all())


@contextmanager
def several(url: str, scheduler: str, directory: Path, *options: str) -> Iterator[list[Program]]:
    """Three processes of one program; a file ``hold`` stops their bodies."""
    arguments = [url, scheduler, "--hold", str(directory / "hold"), *options]
    programs = [Program(PERIODIC, directory, *arguments) for _ in range(3)]
    try:
        for program in programs:
            program.start()
        for program in programs:
            program.ready()
        yield programs
    finally:
        for program in programs:
            program.kill()

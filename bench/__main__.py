"""``python -m bench``: measure and print a table. Needs nothing installed and asks nothing.

Owns options, servers and output. Must not know how anything is measured.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import MODULES, machine, table
from bench.base import Row, Servers
from bench.places import database_of_its_own, keys_of_its_own
from bench.postgres import durable_postgres
from example_project.servers import ServerUnavailable, start_redis

#: Environment variables with URLs of servers to measure on.
DATABASE = "IDEM_BENCH_POSTGRES_URL"
BROKER = "IDEM_BENCH_REDIS_URL"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 if everything was measured."""
    options = _parser().parse_args(argv)
    started = time.monotonic()
    rows: list[Row] = []
    with _servers(options.quick) as servers:
        print(machine.describe(servers))
        for name in options.only or MODULES:
            print(f"Measuring: {name}", file=sys.stderr, flush=True)
            module = importlib.import_module(f"bench.{name}")
            rows.extend(module.measure(servers))
    table.show(rows)
    print(f"Measured in {time.monotonic() - started:.0f} s.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="What celery_idem costs, measured in turn with what it is compared with. "
        f"Servers: {DATABASE} and {BROKER}, else private ones.",
    )
    parser.add_argument(
        "--only", action="append", choices=MODULES, metavar="|".join(MODULES), help="only this"
    )
    parser.add_argument(
        "--quick", action="store_true", help="little of everything: the numbers mean nothing"
    )
    return parser


@contextmanager
def _servers(quick: bool) -> Iterator[Servers]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idem-bench-")))
        # PostgreSQL runs as another user where we are root.
        directory.chmod(0o755)
        try:
            database = os.environ.get(DATABASE) or stack.enter_context(
                durable_postgres(directory / "postgres")
            )
            broker = (
                os.environ.get(BROKER) or stack.enter_context(start_redis(directory / "redis")).url
            )
        except ServerUnavailable as error:
            sys.exit(f"{error}\nName a server: {DATABASE}, {BROKER}")
        yield Servers(
            database_url=stack.enter_context(database_of_its_own(database)),
            broker_url=broker,
            prefix=stack.enter_context(keys_of_its_own(broker)),
            directory=directory,
            quick=quick,
        )


if __name__ == "__main__":
    sys.exit(main())

"""The demo's command line.

Owns: options, signals, the temporary folder, and the exit status.
Must not know: the plot.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import FrameType

#: what the demo needs beyond the package's own requirements
NEEDED = ("rich", "psycopg")
#: the shop's shortest interval, in seconds
STEP = 5


class Interrupted(BaseException):
    """A signal asked us to end. Not an Exception: nobody is to handle it on its way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: list[str] | None = None) -> int:
    """Run the demo. Returns 0 only if each slot was executed once (with --stock: if it ran)."""
    options = _parser().parse_args(argv)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        print(f"Not installed: {names}. Try: pip install 'celery-idem[demo,servers]'")
        return 1
    # Read when the shop's modules are imported, by us below and by the processes that we start.
    # This is also why the import below comes late; and it needs rich.
    os.environ["SHOP_STEP"] = str(STEP)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    directory = Path(tempfile.mkdtemp(prefix="celery-idem-demo-"))
    status = 1
    try:
        from example_project.demo.stage import run

        status = run(options, directory)
    except Interrupted as interrupted:
        print("Interrupted. All processes are ended.")
        status = 128 + interrupted.number
    finally:
        if status == 1 and any(directory.glob("*.log")):
            print(f"The logs are kept in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m example_project",
        description="Three beats and two workers on real servers: one execution per slot. "
        "Without options nothing is needed and nothing is asked.",
    )
    parser.add_argument(
        "--stock", action="store_true", help="Celery's own scheduler and plain tasks, to compare"
    )
    parser.add_argument("--seconds", type=int, default=35, help="how long beats run (default 35)")
    parser.add_argument(
        "--broker", metavar="URL", help="your broker; the demo removes its queue at the end"
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="your database, as SQLAlchemy names it; the demo's tables stay in it",
    )
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Leave from wherever we are, so that everything that was started is ended on the way."""
    raise Interrupted(number)

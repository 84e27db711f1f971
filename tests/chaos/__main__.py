"""``python -m tests.chaos``: the campaign's command line.

Owns options, the folder, and the exit status: 0 only if everything that is promised holds.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from rich.console import Console

from tests.chaos.parts import NAMES, Runner, make_parts
from tests.chaos.report import Report, show
from tests.chaos.servers import NoServer


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    # Where there is no terminal, lines need not be folded.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    seed = options.seed if options.seed is not None else int(time.time()) % 100_000
    console.print(f"The fault campaign, seed {seed}")
    parts, left_out = make_parts(options)
    for text in left_out:
        console.print(text, style="yellow")
    directory = Path(tempfile.mkdtemp(prefix="celery-idem-chaos-"))
    directory.chmod(0o755)
    found: list[Report] = []
    try:
        for name, run in parts.items():
            found += _run(name, run, seed, directory / name, console)
    except Exception:
        console.print(f"Broken off; kept in {directory}", style="bold red")
        raise
    except BaseException:  # We were asked to leave.
        shutil.rmtree(directory, ignore_errors=True)
        raise
    else:
        if not any(one.broken or one.remarks for one in found):
            shutil.rmtree(directory, ignore_errors=True)
    return _status(found, console, f"Kept in {directory}; again with --seed {seed}")


def _status(found: list[Report], console: Console, where: str) -> int:
    if any(one.broken for one in found):
        console.print(where, style="bold red")
        return 1
    if not found:
        console.print("Nothing was run, so nothing is known.", style="bold red")
        return 1
    console.print("Everything that is promised holds.", style="bold green")
    return 0


def _run(name: str, run: Runner, seed: int, directory: Path, console: Console) -> list[Report]:
    def say(text: str) -> None:
        console.print(f"{datetime.now(timezone.utc):%H:%M:%S}  {name}: {text}")

    try:
        found = run(seed, directory, say)
    except NoServer as error:
        say(f"left out: {error}")
        return []
    show(console, found)
    if found.remarks and not found.broken:
        console.print(f"Logs are kept in {directory}")
    elif not found.broken:
        shutil.rmtree(directory, ignore_errors=True)
    return [found]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Three beats and four workers on private servers, and faults drawn from a seed."
        " The exit status is 0 only if everything that is promised holds.",
    )
    parser.add_argument("--seed", type=int, help="of the faults (default: another each time)")
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs in all (default 40)")
    parser.add_argument("--beats", type=int, default=40, help="kills of beats, one at a time")
    parser.add_argument("--zombies", type=int, default=20, help="workers' bodies to be stopped")
    parser.add_argument("--seconds", type=float, default=0.0, help="of each part, at least")
    parser.add_argument(
        "--broker",
        choices=["redis", "rabbitmq"],
        default="redis",
        help="of the parts that do not name one",
    )
    parser.add_argument(
        "--part", action="append", choices=NAMES, help="only this part; may be repeated"
    )
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Leave by way of everything that ends what was started."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

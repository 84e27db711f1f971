"""The verdict in words and numbers.

Owns: its text, for a terminal and for a file.
Must not know: how the numbers were found.
"""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from example_project.demo.fleet import LEASE
from example_project.demo.grid import Slot, Verdict
from example_project.demo.killer import Loss

#: as many wrong slots are named; the numbers count all
NAMED = 12


def print_verdict(
    console: Console, verdict: Verdict, failures: list[str], losses: list[Loss]
) -> None:
    """Print the outcome of a run with celery_idem.

    `failures` are processes that ended by themselves, `losses` the runs whose process was killed.
    """
    seen = verdict.seen
    by_beats = seen.copies.total() - seen.resent
    rows = _table()
    rows.add_row("slots due", str(len(verdict.due)), _period(verdict))
    rows.add_row("executions", str(verdict.executions))
    rows.add_row(
        "copies published",
        str(seen.copies.total()),
        f"{by_beats} by the beats, {seen.resent} by the demo",
    )
    duplicates, recovered = seen.duplicates.total(), seen.takeovers.total()
    rows.add_row("duplicates suppressed", str(duplicates), "as the ledger's history has it")
    rows.add_row("runs recovered", str(recovered), "as the ledger's history has it")
    for loss in losses:
        if loss.aimed and loss.seconds is not None:
            label = f"the killed {loss.what}'s run after"
            rows.add_row(label, f"{loss.seconds:.1f} s", _wait(loss))
    rows.add_row("slots executed not exactly once", str(len(verdict.wrong)))
    rows.add_row("charged", _money(verdict.charged), f"{_money(verdict.chargeable)} was due")
    _print(console, rows)
    for slot in verdict.wrong[:NAMED]:
        console.print(Text(_wrong(slot, verdict), "red"))
    if verdict.wrong:
        console.print(Text("The promise was broken.", "bold red"))
    elif failures:
        text = f"This run proves nothing: {', '.join(failures)} ended by itself."
        console.print(Text(text, "bold red"))
    else:
        text = "One execution per slot, though a beat, a worker and a process were killed."
        console.print(Text(text, "bold green"))


def print_stock_verdict(
    console: Console, verdict: Verdict, failures: list[str], beats: int
) -> None:
    """Print the outcome of a run with Celery's own scheduler, beside what was due."""
    rows = _table("right")
    rows.add_row("", "due", "happened", style="dim")
    rows.add_row("executions", str(len(verdict.due)), str(verdict.executions))
    wrong = sum(slot in verdict.due for slot in verdict.wrong)
    rows.add_row("slots executed not exactly once", "0", str(wrong))
    rows.add_row("charged", _money(verdict.chargeable), _money(verdict.charged))
    _print(console, rows)
    if failures:
        text = f"This run shows nothing: {', '.join(failures)} ended by itself."
        console.print(Text(text, "bold red"))
        return
    rate = verdict.executions / max(1, len(verdict.due))
    text = f"{rate:.1f} executions per slot: Celery's own scheduler with {beats} beats."
    console.print(Text(text, "bold"))
    console.print("This is expected: its beats do not know of each other, so only one may run.")


def _table(last: Literal["left", "right"] = "left") -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify=last)
    return table


def _print(console: Console, rows: Table) -> None:
    for part in ("", Text("Verdict", "bold"), Padding(rows, (0, 2), expand=False), ""):
        console.print(part)


def _money(cents: int) -> str:
    return f"{cents / 100:.2f}"


def _period(verdict: Verdict) -> str:
    if not verdict.due:
        return ""
    first, last = verdict.due[0].instant, verdict.due[-1].instant
    return f"{first:%H:%M:%S} to {last:%H:%M:%S}, by the grid"


def _wait(loss: Loss) -> str:
    """Return what the seconds until the next start of a run are."""
    if loss.what == "worker":
        return f"the rest of its {LEASE} s lease included"
    return "from the kill to its next start"


def _wrong(slot: Slot, verdict: Verdict) -> str:
    copies, runs = verdict.seen.copies[slot], verdict.seen.runs[slot]
    return f"{slot.entry} at {slot.instant:%H:%M:%S}: {copies} copies, {runs} executions"

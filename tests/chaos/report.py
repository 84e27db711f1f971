"""The table of a campaign, and what was promised of it.

Owns the words, and which numbers must be zero. Must not know how they were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tests.chaos.campaign import Outcome

#: As many findings are named; the numbers count all.
NAMED = 8
#: Seconds from the kill to the next begin of the run, beyond a lease; and for a pool process.
WORKER_MARGIN, CHILD_LIMIT = 15.0, 5.0
#: Seconds after its instant at which a slot is published at the latest, though a beat was killed.
LATEST = 2.0


@dataclass(frozen=True)
class Report:
    """What one part has found.

    Attributes:
        rows: what, how many, a remark.
        broken: what was promised and does not hold.
    """

    name: str
    took: float
    rows: list[tuple[str, str, str]]
    broken: list[str]
    remarks: list[str] = field(default_factory=list)


def broken(outcome: Outcome) -> list[str]:
    """What was promised and does not hold."""
    verdict = outcome.verdict
    found: list[str] = []

    def must_be_empty(what: str, findings: Sequence[object]) -> None:
        if findings:
            found.append(f"{len(findings)} {what}: {'; '.join(map(str, findings[:NAMED]))}")

    must_be_empty("slots lost", verdict.lost)
    must_be_empty("transactional effects doubled", verdict.doubled_transactional)
    must_be_empty("effects doubled without a cause", verdict.unexplained)
    must_be_empty("overlaps that both trusted", verdict.overlaps_trusted)
    if not outcome.lossy:
        must_be_empty("links lost", verdict.lost_links)
    if not outcome.hurt:
        must_be_empty("steps of chains lost", verdict.lost_steps)
    if not outcome.settled:
        must_be_empty("runs still open", outcome.still_open or ["?"])
    if outcome.part.name == "defaults":
        found += _late(outcome)
    if outcome.part.one_down:
        late = [f"{key} {seconds:.2f} s" for seconds, key in verdict.lateness if seconds > LATEST]
        must_be_empty(f"slots more than {LATEST:g} s late", late)
    return found


def _late(outcome: Outcome) -> list[str]:
    limits = {"worker": outcome.part.lease + WORKER_MARGIN, "child": CHILD_LIMIT}
    return [
        f"recovery of a killed {one.what} took {one.seconds:.1f} s, {limits[one.what]:g} s at most"
        for one in outcome.verdict.recoveries
        if one.seconds > limits[one.what]
    ]


def report(outcome: Outcome) -> Report:
    """The faults, and what came of them."""
    counts = Counter(one.what for one in outcome.faults)
    rows = [
        (kind, str(number), "")
        for kind, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    rows += [("", "", ""), *_rows(outcome)]
    return Report(outcome.part.name, outcome.took, rows, broken(outcome), outcome.ended)


def show(console: Console, found: Report) -> None:
    """The table of one part."""
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in found.rows:
        table.add_row(*row)
    console.print()
    console.print(Text(f"{found.name}, {found.took:.0f} s", "bold"))
    console.print(Padding(table, (0, 2), expand=False))
    for text in found.remarks[:NAMED]:
        console.print(Text(text, "yellow"))
    for text in found.broken:
        console.print(Text(text, "red"))


def _rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    verdict = outcome.verdict
    links = "their messages rest on the broker" if outcome.lossy else ""
    steps = "messages outside of the schedule rest on the broker" if outcome.hurt else ""
    rows: list[tuple[str, int, str]] = [
        ("slots due", len(verdict.due), "counted from the grid"),
        ("bodies begun", verdict.bodies, ""),
        ("effects", verdict.effects, ""),
        ("slots lost", len(verdict.lost), ""),
        ("links lost", len(verdict.lost_links), links),
        ("chain steps lost", len(verdict.lost_steps), steps),
        ("transactional effects doubled", len(verdict.doubled_transactional), ""),
        ("other effects doubled", len(verdict.doubled_killed), "killed before the finish"),
        ("", len(verdict.doubled_late), "owner late, and refused"),
        ("", len(verdict.doubled_link), "links sent again after a crash"),
        ("", len(verdict.unexplained), "without a cause"),
        ("overlaps, both trusted", len(verdict.overlaps_trusted), ""),
        ("overlaps, one not trusted", len(verdict.overlaps), "stopped or cut off"),
        ("writes refused", verdict.history["refused"], ""),
        ("takeovers", verdict.history["takeover"], ""),
        ("callbacks made up for", verdict.history["repair"], ""),
        ("duplicates", verdict.history["duplicate"], "no-ops"),
    ]
    shown = [(what, str(number), remark) for what, number, remark in rows]
    for kind in ("worker", "child"):
        longest = verdict.longest(kind)
        number = sum(one.what == kind for one in verdict.recoveries)
        value = f"{longest.seconds:.1f} s" if longest else "-"
        shown.append((f"longest recovery, {kind}", value, f"of {number}"))
    if outcome.part.one_down:
        shown += _punctual(outcome)
    return shown


def _punctual(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Of slots, from their instant to the first begin of a body."""
    seconds = [late for late, _ in outcome.verdict.lateness]
    if not seconds:
        return []
    copies = outcome.verdict.history["duplicate"]
    return [
        ("latest slot", f"{seconds[0]:.2f} s", f"of {len(seconds)}"),
        ("half of them", f"{seconds[len(seconds) // 2]:.2f} s", "late at most"),
        ("copies published", f"{100 * copies / len(seconds):.1f} %", "beyond one of each slot"),
    ]

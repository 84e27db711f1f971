"""What the demo shows while it runs: a live table, or plain lines where there is no terminal.

Owns: the rows and their colours.
Must not know: where the numbers come from, and what they mean for the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from example_project.demo.grid import Seen, Slot
from example_project.schedule import ENTRIES


@dataclass(frozen=True)
class Frame:
    """One picture."""

    #: names of beats and workers with their status
    members: list[tuple[str, str]] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    progress: str = ""


class Screen:
    """Shows notes, which stay, and frames, of which a terminal shows the last one."""

    def __init__(self, console: Console) -> None:
        """Show on `console`, live if that is a terminal."""
        self._console = console
        self._unicode = console.encoding.lower().startswith("utf")
        self._live = Live(console=console, refresh_per_second=5) if console.is_terminal else None
        self._printed: set[datetime] = set()

    def start(self) -> None:
        """Begin to show frames."""
        if self._live:
            self._live.start()

    def stop(self) -> None:
        """End showing frames; the last one stays. May be repeated."""
        if self._live:
            self._live.stop()

    def note(self, text: str) -> None:
        """Show what happened, with the time."""
        moment = datetime.now(timezone.utc).strftime("%H:%M:%S")
        self._console.print(Text.assemble((f"{moment}  ", "dim"), text), soft_wrap=True)

    def show(self, frame: Frame, closed_before: datetime) -> None:
        """Show a frame. Without a terminal: the slots older than `closed_before`, each once."""
        if self._live:
            self._live.update(self._picture(frame))
            return
        for instant, slots in groupby(frame.slots, key=lambda slot: slot.instant):
            if instant < closed_before and instant not in self._printed:
                self._printed.add(instant)
                self._console.print(self._line(instant, slots, frame.seen), soft_wrap=True)

    def _picture(self, frame: Frame) -> RenderableType:
        members = Table.grid(padding=(0, 3, 0, 0))
        # A row of beats, a row of workers: all in one are wider than many terminals.
        for _, row in groupby(frame.members, key=lambda member: member[0].split()[0]):
            members.add_row(*(_member(name, status) for name, status in row))
        lines: list[RenderableType] = ["", members, "", self._table(frame)]
        if frame.progress:
            lines += ["", Text(frame.progress, "dim")]
        return Group(*lines)

    def _table(self, frame: Frame) -> Table:
        table = Table(
            box=None,
            padding=(0, 3, 0, 0),
            title=f"Of each slot: copies published {self._arrow} executions",
            title_justify="left",
            title_style="dim",
            header_style="bold",
        )
        table.add_column("slot (UTC)")
        for name in ENTRIES:
            table.add_column(name, justify="center")
        for instant, slots in groupby(frame.slots, key=lambda slot: slot.instant):
            present = {slot.entry: slot for slot in slots}
            cells = (
                self._cell(present[name], frame.seen) if name in present else "" for name in ENTRIES
            )
            table.add_row(f"{instant:%H:%M:%S}", *cells)
        return table

    def _cell(self, slot: Slot, seen: Seen) -> Text:
        copies, runs = seen.copies[slot], seen.runs[slot]
        style = {0: "yellow", 1: "green"}.get(runs, "bold red")
        return Text(f"{copies} {self._arrow} {runs}", style)

    def _line(self, instant: datetime, slots: Iterable[Slot], seen: Seen) -> str:
        """Return a line that can be read, or searched for, without the others."""
        cells = {
            slot.entry: f"{slot.entry} {seen.copies[slot]} {self._arrow} {seen.runs[slot]}"
            for slot in slots
        }
        # In the order of the schedule, and each entry below itself.
        row = "  ".join(cells.get(name, "").ljust(len(name) + 6) for name in ENTRIES)
        return f"slot {instant:%H:%M:%S}  {row}".rstrip()

    @property
    def _arrow(self) -> str:
        return "\N{RIGHTWARDS ARROW}" if self._unicode else "->"


def _member(name: str, status: str) -> Text:
    style = {"runs": "green"}.get(status, "yellow" if "by itself" not in status else "bold red")
    return Text.assemble((f"{name} ", "dim"), (status, style))

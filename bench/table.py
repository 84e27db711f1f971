"""The table of results.

Owns its form: by rich where there is a terminal, as Markdown where there is none, so that it can be
put into a document. Must not know what was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.base import Row

HEADS = ("measured", "compared with", "value", "reference", "unit", "compared", "aim")


def show(rows: Sequence[Row]) -> None:
    """Print the rows."""
    if sys.stdout.isatty() and _by_rich(rows):
        return
    print(markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines)


def _by_rich(rows: Sequence[Row]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    table = Table(*HEADS)
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)
    return True


def _cells(row: Row) -> list[str]:
    return [
        row.what,
        row.against,
        _number(row.value),
        _number(row.reference),
        row.unit,
        row.compared,
        row.aim,
    ]


def _number(value: float) -> str:
    """Three significant digits are more than a measurement of seconds knows."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

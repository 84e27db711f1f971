"""The parts of the documents that are made from the code: ``python -m tests.docs.generated``.

Owns the form of these parts. A test compares them with the code; this command writes them anew.
Must not know anything that the code does not say.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from inspect import signature
from pathlib import Path
from typing import Any

import celery_idem.config
import celery_idem.run
from celery_idem.config import PREFIX, Settings, as_text
from celery_idem.errors import ImproperlyConfigured
from celery_idem.run import TRANSITIONS, RunState
from celery_idem.scheduler import IdempotentScheduler
from celery_idem.task import IdempotentTask
from tests.docs.markdown import ROOT, marked, replace_marked

README = ROOT / "README.md"
DOCS = ROOT / "docs"


def settings_table() -> str:
    """All settings with default, what is allowed, and meaning."""
    meanings = comments_of(Path(celery_idem.config.__file__), "Settings")
    rows = [
        f"| `{PREFIX}{item.name}` | {_default(item)} | {_allowed(item)} | {_also(item.name)} "
        f"| {meanings[item.name]} |"
        for item in fields(Settings)
    ]
    head = ["| setting | default | allowed | also per | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def states_table() -> str:
    """All states of a run with their number and meaning."""
    meanings = comments_of(Path(celery_idem.run.__file__), "RunState")
    rows = [f"| `{state.label}` | {state.value} | {meanings[state.name]} |" for state in RunState]
    return "\n".join(["| state | stored as | meaning |", "|---|---|---|", *rows, ""])


def states_chart() -> str:
    """The moves between states, as a chart in Mermaid."""
    moves = [
        f"    {_node(start)} --> {end.label}"
        for start, ends in TRANSITIONS.items()
        for end in sorted(ends)
    ]
    last = [
        f"    {state.label} --> [*]" for state, ends in TRANSITIONS.items() if state and not ends
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", *moves, *last, "```", ""])


PARTS: dict[tuple[Path, str], Callable[[], str]] = {
    (README, "settings"): settings_table,
    (DOCS / "settings.md", "settings"): settings_table,
    (DOCS / "how-it-works.md", "chart of states"): states_chart,
    (DOCS / "operations.md", "states"): states_table,
}


def comments_of(module: Path, owner: str) -> dict[str, str]:
    """The ``#:`` comments above the names that a class defines."""
    source = module.read_text(encoding="utf-8")
    lines = source.splitlines()
    (body,) = (
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == owner
    )
    found = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name):
            found[target.id] = _comment_above(lines, node.lineno - 1)
    return found


def _comment_above(lines: list[str], index: int) -> str:
    text: list[str] = []
    while lines[index - 1].strip().startswith("#:"):
        index -= 1
        text.insert(0, lines[index].strip().removeprefix("#:").strip())
    return " ".join(text)


def _default(item: Field[Any]) -> str:
    if item.default is MISSING:
        assert item.default_factory is not MISSING
        return f"`{item.default_factory()!r}`"
    if item.name == "namespace":
        # `Settings.read` takes the app's name first.
        return f"the app's name, else `{item.default}`"
    value = as_text(item.default)
    return f"`{value}`" if not isinstance(item.default, float) else f"`{item.default:g}`"


def _allowed(item: Field[Any]) -> str:
    """What the error for an impossible value says."""
    impossible = ":" if type(item.default) is str else -1
    try:
        item.metadata["check"](item.name, impossible)
    except ImproperlyConfigured as error:
        text = error.allowed.removeprefix("it must be ").removeprefix("allowed are ")
        text = re.sub(r"\d\S*e\+\d+", lambda number: f"{float(number.group()):.0f}", text)
        return text.replace("'", "`")
    raise AssertionError(f"{item.name} = {impossible!r} is possible: what is not?")


def _also(name: str) -> str:
    """Where there is an option of the same name, without the prefix."""
    if name in vars(IdempotentTask):
        return "task"
    return "entry" if name in signature(IdempotentScheduler.Entry.__init__).parameters else ""


def _node(state: RunState | None) -> str:
    return "[*]" if state is None else state.label


def main() -> int:
    """Write all parts; print those that changed."""
    for (document, mark), make in PARTS.items():
        content = make()
        if marked(document, mark) != content:
            replace_marked(document, mark, content)
            print(f"{document.relative_to(ROOT)}: {mark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

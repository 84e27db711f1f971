"""What the documents copy from the code is what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import celery_idem
from celery_idem import signals
from celery_idem.config import PREFIX, Settings
from celery_idem.ledger.migrations import VERSION_TABLE
from celery_idem.ledger.schema import metadata
from celery_idem.run import RunState
from tests.docs.generated import DOCS, PARTS, states_chart
from tests.docs.markdown import ROOT, marked, table_below

PACKAGE = Path(celery_idem.__file__).parent
_RECORD = re.compile(r"(?:\brecord|_record|_write_line)\(\s*\"(\w+)\"")


@pytest.mark.parametrize(
    ("document", "mark", "make"),
    [(*place, make) for place, make in PARTS.items()],
    ids=[f"{document.name}-{mark}" for document, mark in PARTS],
)
def test_generated_parts_are_those_of_the_code(
    document: Path, mark: str, make: Callable[[], str]
) -> None:
    assert marked(document, mark) == make(), "run: python -m tests.docs.generated"


def test_each_setting_is_in_the_table_and_explained() -> None:
    table, page = marked(DOCS / "settings.md", "settings"), (DOCS / "settings.md").read_text()
    for item in fields(Settings):
        assert table.count(f"| `{PREFIX}{item.name}` |") == 1
        assert re.search(rf"\*\*[^*]*`{PREFIX}{item.name}\b", page), f"{item.name} is not explained"


def test_the_chart_has_each_state() -> None:
    assert {state.label for state in RunState} <= set(re.findall(r"\w+", states_chart()))


def test_the_tables_of_the_ledger() -> None:
    described = [
        row[0].strip("`")
        for row in table_below(DOCS / "operations.md", "Tables and their versions")
    ]
    assert set(described) == {*metadata.tables, VERSION_TABLE}


def test_the_kinds_of_history() -> None:
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    written = {kind for text in sources for kind in _RECORD.findall(text)}
    described = [row[0].strip("`") for row in table_below(DOCS / "operations.md", "History")]
    assert set(described) == written


def test_the_log_lines() -> None:
    described = {
        (action.strip("`"), level, line.strip("`"))
        for action, level, line, _ in table_below(DOCS / "operations.md", "Log lines")
    }
    assert described == set(_log_lines())


def _log_lines() -> Iterator[tuple[str, str, str]]:
    """Action, level and line of each log call that tells an action."""
    for node in ast.walk(ast.parse(Path(signals.__file__).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        extra = next((item.value for item in node.keywords if item.arg == "extra"), None)
        if isinstance(extra, ast.Dict):
            action = next(
                value
                for key, value in zip(extra.keys, extra.values, strict=True)
                if isinstance(key, ast.Constant) and key.value == "action"
            )
            line = ast.literal_eval(node.args[0])
            yield ast.literal_eval(action), node.func.attr.upper(), line


@pytest.mark.parametrize(
    ("document", "at_least"),
    [("guarantees.md", 40), ("from-celery-once.md", 20), ("from-celery-singleton.md", 20)],
)
def test_documents_name_tests_that_exist(document: str, at_least: int) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= at_least
    missing = [f"{path}::{test}" for path, test in named if test not in _tests_in(ROOT / path)]
    assert missing == []


def test_each_guarantee_names_a_test() -> None:
    for heading in (
        "One execution per slot",
        "Ownership",
        "Emission",
        "How a body ends",
        "What an arriving message gets",
    ):
        for row in table_below(DOCS / "guarantees.md", heading):
            assert "::test_" in row[-1], row
    for document in ("from-celery-once.md", "from-celery-singleton.md"):
        for row in table_below(DOCS / document, "Behaviour by behaviour"):
            assert "::test_" in row[-1], row


def _tests_in(path: Path) -> set[str]:
    if not path.exists():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

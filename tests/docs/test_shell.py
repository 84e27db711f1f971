"""The commands in the documents exist, with the options that they are given."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest

from celery_idem.cli.template import run_key
from celery_idem.clock import SYSTEM
from example_project.demo.cli import _parser
from tests.docs.markdown import ROOT, all_blocks, documents, name, prose
from tests.processes import python_path

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
EXTRAS = set(metadata("celery-idem").get_all("Provides-Extra") or ())


def in_blocks() -> Iterator[tuple[str, str]]:
    """The commands of blocks: where one stands, and the command."""
    for block in all_blocks("sh", "console"):
        for line in block.text.splitlines():
            if line.strip() and not line.startswith("#"):
                yield str(block), line
    for block in all_blocks("cron", "ini"):
        for command in re.findall(r"celery-idem .*", block.text):
            yield str(block), command


def commands() -> Iterator[tuple[str, str]]:
    """Those of blocks and of sentences."""
    yield from in_blocks()
    for document in documents():
        for number, line in prose(document):
            for code in re.findall(r"`([^`]+)`", line):
                if re.match(r"(make|celery|celery-idem|python -m|pip) \S", code):
                    yield f"{name(document)}:{number}", code


def by_make(words: list[str]) -> None:
    target, *rest = [word for word in words if not re.match(r"PYTHON=", word)]
    assert target in TARGETS, f"the Makefile has no target {target}"
    for word in rest:
        variable, _, value = word.partition("=")
        assert f"$({variable})" in MAKEFILE
        if target == "demo":
            _parser().parse_args(shlex.split(value))


def by_celery(words: list[str]) -> None:
    if words[:1] == ["-A"]:
        words = ["-A", "example_project.app", *words[2:]]
    else:
        words = ["-A", "example_project.app", *words]
    succeeds("celery", *words, "--help")


def by_script(words: list[str]) -> None:
    options = words[: words.index("--")] if "--" in words else words
    if "--" in words:
        (template,) = [word for word in options if "{slot:" in word]
        run_key(template, "UTC", SYSTEM.now())
        assert words[-1] != "--"
    succeeds("celery_idem.cli.script", *options, "--help")


def by_pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in words[1:]:
        found = re.fullmatch(r"celery-idem(?:\[([\w,]+)\])?", word)
        assert found, f"{word} is not this project"
        extras = (found.group(1) or "").split(",")
        assert set(filter(None, extras)) <= EXTRAS


def by_python(words: list[str]) -> None:
    assert words[0] == "-m"
    succeeds(words[1], *words[2:], "--help")


def succeeds(module: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": by_make,
    "celery": by_celery,
    "celery-idem": by_script,
    "pip": by_pip,
    "python": by_python,
}


def distinct() -> dict[str, str]:
    """Each command once, with the first place that has it."""
    found: dict[str, str] = {}
    for place, command in commands():
        found.setdefault(command, place)
    return found


@pytest.mark.parametrize(("command", "place"), distinct().items(), ids=str)
def test_command_exists(command: str, place: str) -> None:
    program, *words = shlex.split(command, comments=True)
    if "=" in program:
        program, *words = words
    assert program in CHECKS, f"{place}: nothing checks {program}"
    CHECKS[program](words)


def test_the_commands_of_the_readme_are_found() -> None:
    assert {"make demo", "make test", "celery -A shop beat --loglevel INFO"} <= set(distinct())


def test_beat_finds_the_scheduler_by_its_short_name(tmp_path: Path) -> None:
    # `--help` does not load it.
    code = (
        "from celery.utils.imports import symbol_by_name, load_extension_class_names\n"
        "names = dict(load_extension_class_names('celery.beat_schedulers'))\n"
        "print(symbol_by_name(names['idem']).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "IdempotentScheduler\n"

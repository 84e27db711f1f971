"""The project of the README, before and after its three edits.

Owns reading the edits, and replacing the servers that they name by those of a test. Must not know
what the project does.
"""

from __future__ import annotations

import re

from tests.docs.markdown import ROOT, marked

README = ROOT / "README.md"
#: The URLs in the README.
BROKER = "redis://localhost:6379/0"
DATABASE = "postgresql://shop:secret@localhost/shop"


def before() -> str:
    """The module as it was."""
    return _side("-")


def after(broker: str, database: str) -> str:
    """The module with the edits made, on these servers."""
    text = _side("+")
    for named, real in ((BROKER, broker), (DATABASE, database)):
        assert named in text
        text = text.replace(named, real)
    return text


def with_run() -> str:
    """The block that goes on where the edits end."""
    return _code("run", "python")


def _side(sign: str) -> str:
    lines = _code("adoption", "diff").splitlines()
    assert {line[:1] for line in lines} == {" ", "+", "-", ""}
    return "\n".join(line[1:] for line in lines if line[:1] in (" ", sign, "")) + "\n"


def _code(mark: str, language: str) -> str:
    found = re.match(rf"```{language}\n(.*?)```\n", marked(README, mark), re.DOTALL)
    assert found, f"the README has no block of {language} at <!-- {mark} -->"
    return found.group(1)

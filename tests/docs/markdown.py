"""The project's documents, taken apart: blocks of code, headings, links, tables, generated parts.

Owns reading Markdown as far as these documents use it. Must not know what is written in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\w*)\s*$")
_HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*$")
_LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]*`")


@dataclass(frozen=True)
class Block:
    """A fenced block of code, and the line of its first fence."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def documents() -> list[Path]:
    """All documents of the project."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def name(document: Path) -> str:
    """Its path inside the project."""
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path) -> Iterator[Block]:
    """The blocks of code in a document."""
    begin, language, text = 0, "", list[str]()
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if begin and line.strip() == "```":
            yield Block(name(document), begin, language, "\n".join(text) + "\n")
            begin = 0
        elif begin:
            text.append(line)
        elif fence:
            begin, language, text = number, fence.group(1), []
    assert not begin, f"{name(document)}:{begin}: the block does not end"


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of all documents in these languages."""
    return [
        block
        for document in documents()
        for block in blocks(document)
        if block.language in languages
    ]


def prose(document: Path) -> list[tuple[int, str]]:
    """Numbered lines outside of blocks of code."""
    lines, inside = [], False
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            lines.append((number, line))
    return lines


def links(document: Path) -> list[tuple[int, str]]:
    """The targets of links, with the line they are on."""
    return [
        (number, target)
        for number, line in prose(document)
        for target in _LINK.findall(_CODE.sub("`", line))
    ]


def anchors(document: Path) -> set[str]:
    """The anchors that a forge makes of a document's headings."""
    found: set[str] = set()
    for _, line in prose(document):
        heading = _HEADING.match(line)
        if heading:
            slug = re.sub(r"[^\w\- ]", "", heading.group(2).lower()).replace(" ", "-")
            number = 1
            while slug in found:
                slug, number = f"{slug.removesuffix(f'-{number - 1}')}-{number}", number + 1
            found.add(slug)
    return found


def table_below(document: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = [line for _, line in prose(document)]
    titles = [line.lstrip("# ").strip() if line.startswith("#") else "" for line in lines]
    rows: list[list[str]] = []
    for line in lines[titles.index(heading) + 1 :]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows or line.startswith("#"):
            break
    assert len(rows) > 2, f"{name(document)} has no table below {heading!r}"
    return rows[2:]


def marked(document: Path, mark: str) -> str:
    """What stands between ``<!-- mark -->`` and ``<!-- end mark -->``."""
    text = document.read_text(encoding="utf-8")
    found = re.search(_marks(mark), text, re.DOTALL)
    assert found, f"{name(document)} has no <!-- {mark} --> with its <!-- end {mark} -->"
    return found.group(2)


def replace_marked(document: Path, mark: str, content: str) -> None:
    """Write `content` between the marks."""
    text = document.read_text(encoding="utf-8")
    changed = re.sub(
        _marks(mark),
        lambda found: found.group(1) + content + found.group(3),
        text,
        flags=re.DOTALL,
    )
    document.write_text(changed, encoding="utf-8")


def _marks(mark: str) -> str:
    return rf"(<!-- {re.escape(mark)} -->\n)(.*?)(<!-- end {re.escape(mark)} -->)"

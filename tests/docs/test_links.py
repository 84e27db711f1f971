"""Links of the documents lead somewhere, and what they name is there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from celery_idem import IdempotentTask, keys
from celery_idem.config import PREFIX, Settings
from tests.docs.markdown import ROOT, anchors, documents, links, name, prose

SETTINGS = {f"{PREFIX}{item.name}" for item in fields(Settings)}
#: Options of tasks that are no settings as well.
OPTIONS = {name for name in vars(IdempotentTask) if name.startswith(PREFIX)}
HEADERS = {value for key, value in vars(keys).items() if key.startswith("HEADER_")}


@pytest.mark.parametrize("document", documents(), ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for line, target in links(document):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        if not found.exists() or ROOT not in [found, *found.parents]:
            broken.append(f"line {line}: there is no {path}")
        elif anchor and anchor not in anchors(found):
            broken.append(f"line {line}: {name(found)} has no heading #{anchor}")
    assert broken == []


def test_each_document_can_be_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document in reached:
            continue
        reached.add(document)
        targets = [target.partition("#")[0] for _, target in links(document)]
        waiting += [
            (document.parent / target).resolve()
            for target in targets
            if target.endswith(".md") and not target.startswith("https://")
        ]
    assert set(documents()) - reached == set()


@pytest.mark.parametrize("document", documents(), ids=name)
def test_settings_and_headers_that_are_named_exist(document: Path) -> None:
    named = {
        found for _, line in prose(document) for found in re.findall(r"`(idem_\w+[a-z])`", line)
    }
    assert named - SETTINGS - OPTIONS - HEADERS == set()


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One thing\n\n## One thing\n\nSee [it](#one-thing-1) and `[no](link)`.\n")
    assert links(page) == [(5, "#one-thing-1")]
    assert anchors(page) == {"one-thing", "one-thing-1"}

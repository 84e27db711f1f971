"""The two ways to make virtual hosts on RabbitMQ: its control tool and its management API.

Must not know: when they are made, and for what.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from tests.services.base import Refused

TIMEOUT = 60.0
EVERYTHING = {"configure": ".*", "write": ".*", "read": ".*"}
MANAGEMENT = "IDEM_TEST_RABBITMQ_MANAGEMENT_URL"


class Vhosts(Protocol):
    """Somebody who may make and delete virtual hosts."""

    def names(self) -> list[str]:
        """All virtual hosts. Raises Refused."""

    def add(self, names: list[str], user: str) -> None:
        """Makes virtual hosts and lets ``user`` do everything there. Raises Refused."""

    def delete(self, name: str) -> None:
        """Deletes a virtual host with all that is in it. Raises Refused."""


class Control:
    """rabbitmqctl, for a node on this machine."""

    def __init__(self, program: Path, environment: Mapping[str, str]) -> None:
        self.program = program
        self.environment = environment

    def names(self) -> list[str]:
        """All virtual hosts."""
        # The first line may be a heading; whoever looks for a name of ours is not misled by it.
        return self._run("list_vhosts", "name").split()

    def add(self, names: list[str], user: str) -> None:
        """Makes virtual hosts, all in one call: each call starts an Erlang machine."""
        definitions = {
            "vhosts": [{"name": name} for name in names],
            "permissions": [{"user": user, "vhost": name, **EVERYTHING} for name in names],
        }
        # By standard input, since the tool may run as a user who cannot read our files.
        self._run("import_definitions", given=json.dumps(definitions))

    def delete(self, name: str) -> None:
        """Deletes a virtual host."""
        self._run("delete_vhost", name)

    def evaluate(self, expression: str) -> str:
        """Has the node evaluate an Erlang expression."""
        return self._run("eval", f"{expression}.")

    def _run(self, *arguments: str, given: str = "") -> str:
        try:
            done = subprocess.run(
                [str(self.program), "--quiet", *arguments],
                input=given,
                env=dict(self.environment),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            said = " ".join((error.stderr or error.stdout).split())[:200]
            raise Refused(f"{self.program} {arguments[0]}: {said}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused(f"{self.program} {arguments[0]}: {error}") from error
        return done.stdout


class Management:
    """The HTTP API of the management plugin, for a server anywhere."""

    def __init__(self, host: str, user: str | None, password: str | None) -> None:
        self.url = os.environ.get(MANAGEMENT, f"http://{host}:15672").rstrip("/")
        pair = f"{user or 'guest'}:{password or 'guest'}"
        self._authorization = "Basic " + base64.b64encode(pair.encode()).decode()

    def names(self) -> list[str]:
        """All virtual hosts."""
        return [str(vhost["name"]) for vhost in self._call("GET", "vhosts")]

    def add(self, names: list[str], user: str) -> None:
        """Makes virtual hosts."""
        for name in names:
            self._call("PUT", f"vhosts/{quote(name, safe='')}", {})
            where = f"permissions/{quote(name, safe='')}/{quote(user, safe='')}"
            self._call("PUT", where, EVERYTHING)

    def delete(self, name: str) -> None:
        """Deletes a virtual host."""
        self._call("DELETE", f"vhosts/{quote(name, safe='')}")

    def _call(self, method: str, path: str, body: Mapping[str, str] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )
        # No proxy: the servers of tests are near.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                content = answer.read()
        except OSError as error:
            raise Refused(f"{self.url} ({MANAGEMENT}): {error}") from error
        return json.loads(content) if content else None

"""docker-compose.yml and Dockerfile name only what exists: there is no need of an engine to see it.

The health check of the beats runs in tests/integration/test_ticking.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from click import Context

from tests.services.base import find_program

ROOT = Path(__file__).parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SHOP = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
#: The programs that the images of others bring, as far as they are named here.
FOREIGN = {"postgres": "pg_isready", "redis": "redis-cli", "rabbitmq": "rabbitmq-diagnostics"}


def words(command: str | list[str]) -> list[str]:
    """A command of the file as the container gets it."""
    listed = shlex.split(command) if isinstance(command, str) else command
    return [word.replace("$$", "$") for word in listed]


def health_check(service: dict[str, Any]) -> list[str]:
    """The command of a health check."""
    kind, *command = service["healthcheck"]["test"]
    assert kind in ("CMD", "CMD-SHELL")
    return words(command[0] if kind == "CMD-SHELL" else command)


def environment(service: dict[str, Any]) -> dict[str, str]:
    """A service's environment with the file's default values."""
    default = re.compile(r"\$\{\w+:-([^}]*)\}")
    return {k: default.sub(r"\1", str(v)) for k, v in service["environment"].items()}


COMMANDS = [
    *(words(service["command"]) for service in SHOP.values()),
    *(health_check(service) for service in SHOP.values()),
]


def test_it_has_the_parts_of_the_example() -> None:
    assert set(SERVICES) == {"beat", "worker", "postgres", "redis", "rabbitmq"}
    assert set(SHOP) == {"beat", "worker"}
    assert SERVICES["beat"]["deploy"]["replicas"] == 3
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_has_a_health_check_that_ends(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    seconds = {key: float(check[key].removesuffix("s")) for key in ("interval", "timeout")}
    assert 0 < seconds["timeout"] <= 15
    assert check["retries"] >= 2
    assert health_check(SERVICES[name])


@pytest.mark.parametrize("name", SHOP)
def test_the_shop_waits_for_servers_that_have_a_health_check(name: str) -> None:
    for needed, how in SHOP[name]["depends_on"].items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[needed]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_of_the_shop_works(command: list[str]) -> None:
    if command[0] == "python":
        assert f"COPY {command[1]} ./{command[1]}" in DOCKERFILE
        assert (ROOT / command[1]).is_file()
        return
    assert command[0] == "celery"
    # Celery loads the app, and finds the command.
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        cwd=ROOT,
        env={**os.environ, **environment(SHOP["beat"])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Help is given before options are looked at, so those are parsed as well.
    assert command[1] == "-A"
    obj = CLIContext(app=Celery(), no_color=True, workdir=None, quiet=True)
    context = Context(celery, obj=obj)
    name, *options = command[3:]
    celery.commands[name].make_context(name, options, parent=context)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_programs_of_other_images_are_those_of_their_servers(name: str) -> None:
    program, *options = health_check(SERVICES[name])
    assert program == FOREIGN[name]
    if found := find_program(program):
        shown = subprocess.run(
            [found, "--help"], capture_output=True, text=True, check=False, timeout=60
        )
        known = shown.stdout + shown.stderr
        assert all(option in known for option in options if option.startswith("--"))


def test_the_shop_reads_each_variable_that_is_set() -> None:
    read = set(re.findall(r"SHOP_\w+", (ROOT / "example_project" / "settings.py").read_text()))
    for service in SHOP.values():
        assert set(environment(service)) <= read


def test_the_urls_lead_to_the_services_with_their_passwords() -> None:
    env = environment(SHOP["worker"])
    database, broker = urlsplit(env["SHOP_DATABASE_URL"]), urlsplit(env["SHOP_BROKER_URL"])
    assert (database.hostname, broker.hostname) == ("postgres", "redis")
    postgres = SERVICES["postgres"]["environment"]
    assert (database.username, database.password, database.path) == (
        postgres["POSTGRES_USER"],
        postgres["POSTGRES_PASSWORD"],
        f"/{postgres['POSTGRES_DB']}",
    )
    # The other broker is named in the heading.
    heading = (ROOT / "docker-compose.yml").read_text()
    found = re.search(r"SHOP_BROKER_URL=(amqp://\S+)", heading)
    assert found
    other, rabbitmq = urlsplit(found[1]), SERVICES["rabbitmq"]["environment"]
    assert other.hostname == "rabbitmq"
    assert (other.username, other.password) == (
        rabbitmq["RABBITMQ_DEFAULT_USER"],
        rabbitmq["RABBITMQ_DEFAULT_PASS"],
    )


def test_the_app_takes_the_environment() -> None:
    env = environment(SHOP["beat"])
    code = (
        "from example_project.app import app; print(app.conf.broker_url, app.conf.beat_scheduler)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [env["SHOP_BROKER_URL"], "celery_idem.IdempotentScheduler"]


def test_the_image_copies_what_exists_and_is_not_ignored() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert {"pyproject.toml", "celery_idem", "example_project"} <= set(sources)
    allowed = (ROOT / ".dockerignore").read_text().split()
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in allowed

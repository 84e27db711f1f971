"""A TCP proxy that can be cut, or stand still: how a server goes away that others use too.

Owns: a thread that carries bytes both ways. Must not know what they mean.

    with Proxy("127.0.0.1", 5432) as proxy:
        connect(proxy.port)
        proxy.cut()
        proxy.mend()
        proxy.cut_when(lambda number, message: b"COMMIT" in message, forwarded=True)
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

#: Closes with a reset, as a server does whose process has died.
_RESET = struct.pack("ii", 1, 0)
#: Seconds in which a server answers.
_ANSWER = 30.0

#: Of a message from a client: its number, from 1 on, and what was read at once.
Which = Callable[[int, bytes], bool]


@dataclass(frozen=True)
class _Plan:
    """What is to happen to the client that sends a certain message."""

    which: Which
    forwarded: bool
    unnoticed: bool
    frozen: bool


class Proxy:
    """Between a client and the server at `host` and `port`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._kept: tuple[socket.socket, bytes] | None = None
        self._plan: _Plan | None = None
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        #: Messages that clients have sent since the last `count_anew` or `cut_when`.
        self.messages = 0
        #: Set when the message of `cut_when` has come.
        self.struck = threading.Event()
        self._moving = threading.Event()
        self._moving.set()
        #: When which bytes are due at the second socket, from the first one; in this order.
        self._late: deque[tuple[float, socket.socket, socket.socket, bytes]] = deque()
        self._delay = 0.0
        self._closed = False
        self._listener: socket.socket | None = None
        self._placeholder: socket.socket | None = None
        self.port = 0
        self.mend()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @classmethod
    def before(cls, url: str) -> Proxy:
        """A proxy before the server of a URL."""
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None, url
        return cls(parts.hostname, parts.port)

    def url(self, url: str) -> str:
        """The URL of the server, by way of this proxy."""
        parts = urlsplit(url)
        login, _, _ = parts.netloc.rpartition("@")
        where = f"127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=f"{login}@{where}" if login else where))

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.cut()
        self._thread.join()
        if self._placeholder is not None:
            self._placeholder.close()

    def cut(self) -> None:
        """The server is gone: connections are reset, new ones refused."""
        with self._lock:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
                # Bound, or somebody else's connection might have the port when it is mended.
                self._placeholder = _bound(self.port)
            for one in self._pairs:
                _reset(one)
            self._pairs.clear()
            self._clients.clear()
            if self._kept is not None:
                _reset(self._kept[0])
                self._kept = None
        self._moving.set()

    def wait_until_left(self) -> None:
        """Until all clients are gone, and what they have sent is counted and carried."""
        with self._left:
            assert self._left.wait_for(lambda: not self._clients, _ANSWER), "a client stays"

    def count_anew(self) -> None:
        """The next message of a client is the first one."""
        with self._lock:
            self._plan, self.messages = None, 0
            self.struck.clear()

    def cut_when(
        self,
        which: Which,
        *,
        forwarded: bool,
        unnoticed: bool = False,
        frozen: bool = False,
    ) -> None:
        """Reset the connection of the client that sends such a message, once; others go on.

        Arguments:
            forwarded: the server has got the message, and its answer is lost.
            unnoticed: the server does not learn of it before `notice`.
            frozen: as `freeze` instead of a reset.
        """
        with self._lock:
            self._plan, self.messages = _Plan(which, forwarded, unnoticed, frozen), 0
            self.struck.clear()

    def notice(self, delivered: bool) -> None:
        """The server learns that the client is gone, perhaps after getting its last message."""
        with self._lock:
            assert self._kept is not None
            far, message = self._kept
            self._kept = None
            if delivered:
                far.sendall(message)
                _await_answer(far)
            _reset(far)

    def freeze(self) -> None:
        """The server stands still: connections are accepted and kept, and nothing moves."""
        self._moving.clear()

    def delay(self, seconds: float) -> None:
        """What is sent from now on arrives so much later, in both directions."""
        with self._lock:
            self._delay = seconds

    def mend(self) -> None:
        """Everything works again, on the same port."""
        with self._lock:
            if self._listener is None:
                listener, self._placeholder = self._placeholder or _bound(self.port), None
                listener.listen(128)
                self.port = listener.getsockname()[1]
                self._listener = listener
        self._moving.set()

    def _run(self) -> None:
        while not self._closed:
            self._moving.wait(0.05)
            if not self._moving.is_set():
                continue
            with self._lock:
                self._deliver()
                watched = [*self._pairs, *([self._listener] if self._listener else [])]
            with suppress(OSError, ValueError):
                # Short, so that what was cut or frozen meanwhile is noticed.
                ready, _, _ = select.select(watched, [], [], 0.02)
                for one in ready:
                    self._serve(one)

    def _serve(self, one: socket.socket) -> None:
        with self._lock:
            if one is self._listener:
                self._accept(one)
            elif one in self._pairs:
                self._carry(one, self._pairs[one])

    def _accept(self, listener: socket.socket) -> None:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=10)
        except OSError:
            near.close()
            return
        self._pairs[near], self._pairs[far] = far, near
        self._clients.add(near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if data and source in self._clients:
                self.messages += 1
                if self._plan is not None and self._plan.which(self.messages, data):
                    plan, self._plan = self._plan, None
                    self._strike(plan, source, sink, data)
                    return
            if data and (self._delay or self._late):
                due = time.monotonic() + self._delay
                # Never before what was sent earlier.
                due = max(due, self._late[-1][0]) if self._late else due
                self._late.append((due, source, sink, data))
                return
            if data:
                sink.sendall(data)
                return
        except OSError:
            pass
        self._part(source, sink)

    def _deliver(self) -> None:
        while self._late and self._late[0][0] <= time.monotonic():
            _, source, sink, data = self._late.popleft()
            try:
                if sink in self._pairs:
                    sink.sendall(data)
            except OSError:
                self._part(source, sink)

    def _part(self, *pair: socket.socket) -> None:
        self._forget(*pair)
        for one in pair:
            one.close()

    def _forget(self, *pair: socket.socket) -> None:
        for one in pair:
            self._pairs.pop(one, None)
            self._clients.discard(one)
        self._left.notify_all()

    def _strike(self, plan: _Plan, near: socket.socket, far: socket.socket, data: bytes) -> None:
        if plan.forwarded:
            far.sendall(data)
            _await_answer(far)
        if plan.frozen:
            self._moving.clear()
        # First, as the client may look as soon as it is cut.
        self.struck.set()
        if plan.frozen:
            return
        self._forget(near, far)
        _reset(near)
        if plan.unnoticed:
            self._kept = (far, data)
        else:
            _reset(far)


def _bound(port: int) -> socket.socket:
    """A socket that has this port, and refuses connections as long as it does not listen."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    deadline = time.monotonic() + 10
    while True:
        try:
            one.bind(("127.0.0.1", port))
            return one
        except OSError:
            # The one that was closed lives on for as long as it is looked at.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _await_answer(server: socket.socket) -> None:
    ready, _, _ = select.select([server], [], [], _ANSWER)
    assert ready, "the server does not answer"


def _reset(one: socket.socket) -> None:
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()

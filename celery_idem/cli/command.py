"""The command of `celery-idem exec` as a process: begun, asked to end, waited for.

Owns its signals and its exit status. Must not know runs or ledgers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_GUARD = Path(__file__).with_name("guard.py")
#: What is passed on.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: Those that a terminal sends to all of its foreground processes.
_OF_TERMINALS = (signal.SIGINT, signal.SIGQUIT)


class Command:
    """A command that has our standard input and output, and that our signals reach.

    Attributes:
        was_ended: it did not end by itself, nor by a signal to us.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)
        self.was_ended = False

    def run(self, may_go_on: Callable[[], bool], pause: float, grace: float) -> int:
        """Run it to its end; its exit status, 128 + n if signal n has ended it.

        It is asked to end by SIGTERM when `may_go_on` says no, and killed `grace` seconds later.

        Arguments:
            pause: seconds between two questions.
        """
        process: list[subprocess.Popen[bytes]] = []
        early: list[int] = []

        def pass_on(number: int, frame: FrameType | None) -> None:
            if number in _OF_TERMINALS and _in_foreground():
                return  # The terminal has sent it to the command, too.
            if process:
                _send(process[0], number)
            else:
                early.append(number)

        with _handled(pass_on):
            process.append(self._start())
            for number in early:
                _send(process[0], number)
            return self._wait(process[0], may_go_on, pause, grace)

    def _start(self) -> subprocess.Popen[bytes]:
        words = self._words
        if sys.platform == "linux":
            words = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *words]
        return subprocess.Popen(words)

    def _wait(
        self,
        process: subprocess.Popen[bytes],
        may_go_on: Callable[[], bool],
        pause: float,
        grace: float,
    ) -> int:
        ended = threading.Event()

        def wait() -> None:
            process.wait()
            ended.set()

        # A thread, as a wait with a deadline looks many times a second.
        threading.Thread(target=wait, daemon=True).start()
        while not ended.wait(pause):
            if not may_go_on():
                self.was_ended = True
                _send(process, signal.SIGTERM)
                if not ended.wait(grace):
                    _send(process, signal.SIGKILL)
                    ended.wait()
        status = process.returncode
        return status if status >= 0 else 128 - status


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Our signals are for the command. One that we were told to ignore is, by both."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _in_foreground() -> bool:
    """Whether a terminal sends what is typed to us, and so to the command as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)

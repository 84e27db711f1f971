"""Run one command for exactly as long as somebody holds our standard input open.

Owns: the life of one child process. A process that is killed with SIGKILL cannot clean up after
itself, but the kernel closes its pipes: so each server, beat and worker of the example runs under
a keeper of its own, which reads from a pipe held by the demo or the test, and ends the child when
that pipe closes. This is plain POSIX; Linux's PR_SET_PDEATHSIG would not do on macOS.

Must not know: the rest of the example. The file is started by its path with `python -I`, so that
it imports nothing but the standard library.

Its first line on standard output is the child's pid, or `error: ` and a reason. Its exit status is
the child's, in the shell's way (128 + n after signal n).
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import subprocess
import sys
from types import FrameType

#: seconds between two looks at the child; also the delay with which its own end is noticed
POLL = 0.1


def main(argv: list[str]) -> int:
    """Start the command, print its pid, wait for its end or ours, and leave nothing behind."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        child = _start(options)
    except OSError as error:
        print(f"error: {error}", flush=True)
        return 127
    try:
        print(child.pid, flush=True)
        while child.poll() is None and not _released():
            pass
    finally:
        released = child.poll() is None
        _end(child, signal.Signals[options.signal], options.grace)
        if released and options.remove:
            shutil.rmtree(options.remove, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True, help="file for the command's output")
    parser.add_argument("--signal", default="SIGTERM", help="what asks the command to end")
    parser.add_argument("--grace", type=float, default=15.0, help="seconds before SIGKILL")
    parser.add_argument("--user", type=int, default=None, help="uid and gid to run it as")
    parser.add_argument("--remove", help="a folder to remove after an end that we asked for")
    parser.add_argument("command", nargs="+")
    return parser


def _start(options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own: a Ctrl-C of the terminal must not reach it."""
    account = {} if options.user is None else {"user": options.user, "group": options.user}
    with open(options.log, "ab") as log:
        return subprocess.Popen(
            options.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            extra_groups=None if options.user is None else [],
            **account,
        )


def _released() -> bool:
    """Whether the other end of standard input was closed; waits for it up to POLL seconds."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL)
    return bool(readable) and not os.read(sys.stdin.fileno(), 4096)


def _leave(number: int, frame: FrameType | None) -> None:
    """Turn a signal to the keeper into the same orderly end as a closed pipe."""
    raise SystemExit(128 + number)


def _end(child: subprocess.Popen[bytes], request: signal.Signals, grace: float) -> None:
    """Ask the child to end in its own way; after `grace` seconds, kill its whole group."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # A second Ctrl-C must not make the keeper let go of a child that is still ending.
        signal.signal(number, signal.SIG_IGN)
    if child.poll() is not None:
        return
    child.send_signal(request)
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        # The child is not reaped yet, so its pid, which names the group, cannot be another's.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

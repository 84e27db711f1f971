"""Between `celery-idem exec` and its command: what dies with its parent, on Linux.

Owns asking the kernel for SIGKILL when the parent is gone, which nobody else can do for a process
that is killed by SIGKILL itself; then becoming the command. Started by its path with ``python -I
-S``, so that it imports nothing but the standard library, and its parent need not run Python
between fork and exec.

    python -I -S guard.py PARENT COMMAND [ARGS...]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: ``PR_SET_PDEATHSIG`` of ``linux/prctl.h``. It is kept by an exec, and not by children.
_SET_DEATH_SIGNAL = 1
#: As a shell has them: not found, not executable.
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def main(parent: int, command: list[str]) -> int:
    """Become the command; the exit status if that cannot be."""
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 128 + signal.SIGKILL  # It was gone before the kernel was asked.
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"celery-idem: {command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

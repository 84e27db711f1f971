"""Puts a process under libfaketime, if its environment asks for that; Python imports it at start.

Owns what has to be done before anything else is imported. libfaketime leaves those clocks alone
that measure time, as a wrong wall clock does; but its `clock_nanosleep`, by which `time.sleep`
waits, then fails. Must not know why clocks are shifted.
"""

from __future__ import annotations

import os
import select
import sys
import time

LIBRARY, SHIFT = "IDEM_CHAOS_FAKETIME", "IDEM_CHAOS_SHIFT"


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


if SHIFT in os.environ:
    if os.environ.get("LD_PRELOAD") != os.environ[LIBRARY]:
        os.environ |= {
            "LD_PRELOAD": os.environ[LIBRARY],
            "FAKETIME": os.environ[SHIFT],
            # By the names of its older and newer versions.
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        # The same process, so that whoever has started it still knows it.
        os.execv(sys.executable, sys.orig_argv)
    time.sleep = _sleep  # type: ignore[assignment]

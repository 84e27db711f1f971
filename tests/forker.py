"""The far end of `warm.py`: a process that has imported the libraries, and forks all others.

Owns: what is imported in advance, and the life of each process, which is that of
`example_project/demo/keeper.py`: it ends when its near end does.
Must not know: what is tested.

Importing these libraries costs most of what the start of a worker costs, and leaves modules in
memory but no thread, connection, open file or app: `main` makes sure of that. So a copy of this
process that is given its own command line, directory, environment, session and log goes on like one
that has just imported the same. What makes a difference is left to a true start:

- celery_idem and the apps are not imported here: they are what is tested, and a process gets its
  identity in the ledger when it imports celery_idem.
- An environment in which Python or a library would start otherwise, and pools that patch modules
  before they are imported, are none of these processes: see `warm.can_start`.
- Processes of one test run hash strings alike. Those of the demo, the campaign of `tests/chaos`
  and the acceptance tests do not, and `tests/unit/test_slots_fingerprint.py` goes through seeds.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

IMPORTS = [
    # Not celery.bin.celery, which imports the commands of others: celery_idem's.
    "celery.bin.amqp",
    "celery.bin.beat",
    "celery.bin.call",
    "celery.bin.control",
    "celery.bin.events",
    "celery.bin.graph",
    "celery.bin.list",
    "celery.bin.logtool",
    "celery.bin.migrate",
    "celery.bin.multi",
    "celery.bin.purge",
    "celery.bin.result",
    "celery.bin.shell",
    "celery.bin.upgrade",
    "celery.bin.worker",
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.concurrency.prefork",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "sqlalchemy.dialects.mysql.pymysql",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "alembic.command",
    "alembic.migration",
    "psycopg",
    "pymysql",
]
#: seconds between two looks at a process
POLL = 0.1
#: seconds from SIGTERM to SIGKILL
GRACE = 15.0


def main() -> dict[str, Any]:
    """Serve requests on standard input; return, in a fork, what one asks for."""
    requests = socket.socket(fileno=0)
    for name in IMPORTS:
        import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    assert import_module("celery._state").default_app is None
    assert "celery_idem" not in sys.modules
    while files := socket.recv_fds(requests, 1, 1)[1]:
        if not os.fork():
            requests.detach()  # Standard input is replaced.
            return keep(socket.socket(fileno=files[0]))
        os.close(files[0])
        bury()
    bury()
    sys.exit()  # Whoever asked is gone.


def bury() -> None:
    """Let the keepers go that have ended; how is known already."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def keep(line: socket.socket) -> dict[str, Any]:
    """Fork the process that the line asks for; return in it, and never here."""
    with line.makefile("rb") as request:
        wanted: dict[str, Any] = json.loads(request.readline())
    # All that the two print from here on, the reasons of failures too, is in the log.
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number, file in enumerate((nothing, log, log)):
        os.dup2(file, number)
    os.close(nothing)
    os.close(log)
    # Like the true keeper: out of the terminal's foreground group.
    os.setsid()
    child = os.fork()
    if child:
        status = wait(child, line)
        with suppress(BrokenPipeError):
            line.sendall(b"%d\n" % (status if status >= 0 else 128 - status))
        os._exit(0)
    os.setsid()
    # Only now: who knows the pid may signal the group.
    line.sendall(b"%d\n" % os.getpid())
    line.close()
    return wanted


def wait(child: int, line: socket.socket) -> int:
    """Return the exit status of the child, which is asked to end when the line is closed."""
    while (status := ended(child)) is None and not select.select([line], [], [], POLL)[0]:
        pass
    if status is None:
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while (status := ended(child)) is None and time.monotonic() < deadline:
            time.sleep(POLL / 10)
    if status is None:
        # It is not reaped yet, so its pid, which names the group, cannot be another's.
        os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status


def ended(child: int) -> int | None:
    """Return the exit status, or None while the child runs."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def become(wanted: dict[str, Any]) -> NoReturn:
    """Be ``python -m MODULE ...`` in the given environment and directory."""
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    # Whoever runs the tests in the background has them ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # What `python -m` puts there.
    sys.path[0] = wanted["cwd"]
    module, *sys.argv[1:] = wanted["command"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    # Here, so that the end of a program is the end of its process, as without all this.
    become(main())

"""``celery-idem ...``: what needs a ledger, and no Celery app.

Owns the command line and its exit statuses. Must not contain logic that a library user could need.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
from contextlib import closing
from types import FrameType
from typing import Any

import click

from celery_idem.errors import ImproperlyConfigured, InvalidRunKey, LeaseLost, LedgerError
from celery_idem.policy import OnCrash

NOT_FOUND = 127


@click.group()
@click.version_option(package_name="celery-idem")
def main() -> None:
    """Run things once per slot, without a Celery app."""


@main.command(name="exec", context_settings={"allow_interspersed_args": False})
@click.option("--key", required=True, metavar="KEY", help="For example daily-{slot:day}.")
@click.option(
    "--database",
    envvar="CELERY_IDEM_DATABASE_URL",
    show_envvar=True,
    required=True,
    metavar="URL",
    help="Where the ledger is.",
)
@click.option("--timezone", default="UTC", show_default=True, help="Whose days and weeks they are.")
@click.option(
    "--lease",
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long a host that was not heard of keeps the command.",
)
@click.option(
    "--max-attempts",
    default=5,
    show_default=True,
    metavar="NUMBER",
    help="After so many hosts that died the command is given up.",
)
@click.option(
    "--on-crash",
    type=click.Choice([str(each) for each in OnCrash]),
    default=str(OnCrash.RETRY),
    show_default=True,
    help="What becomes of a command whose host died.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait for the end of a command that is run elsewhere.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(**options: Any) -> None:
    """Run COMMAND once for KEY, on whichever host comes first, and exit with its status.

    {slot:INTERVAL} in KEY is the present interval: minute, hour, day, week, month, or for example
    {slot:10 minutes}. Without it, the command is run once for ever.

    Whoever comes second runs nothing, waits, says so on stderr, and exits with the same status. A
    command that has failed is not repeated for the same KEY. One whose host died is run again by
    the next one who comes, once the lease has ended.

    The status is 2 for a wrong command line, 127 if there is no such command, 75 if the ledger does
    not answer or the lease was lost (and, with --no-wait, while the command runs elsewhere), and 70
    if the run was given up.
    """
    sys.exit(_status(**options))


def _status(
    *,
    key: str,
    database: str,
    timezone: str,
    lease: float,
    max_attempts: int,
    on_crash: str,
    wait: bool,
    command: tuple[str, ...],
) -> int:
    from celery_idem.cli.executing import TRY_AGAIN, Execution
    from celery_idem.cli.template import NAMESPACE, run_key
    from celery_idem.clock import SYSTEM
    from celery_idem.ledger import Ledger
    from celery_idem.ledger.outside import Terms
    from celery_idem.once.party import job_of

    try:
        name = run_key(key, timezone, SYSTEM.now())
        job = job_of(key, Terms(NAMESPACE, lease, max_attempts, on_crash), "exec")
        ledger = Ledger.from_url(database)
    except (InvalidRunKey, ImproperlyConfigured) as exc:
        raise click.UsageError(str(exc)) from exc
    signal.signal(signal.SIGTERM, _leave)
    logging.basicConfig(format="celery-idem: %(message)s", level=logging.WARNING)
    if shutil.which(command[0]) is None:
        # Before the claim: another host may have it.
        _tell(f"{command[0]}: there is no such command")
        return NOT_FOUND
    try:
        with closing(ledger):
            return Execution(ledger, job, name, command, wait, _tell).status()
    except (LedgerError, LeaseLost) as exc:
        _tell(str(exc))
        return TRY_AGAIN


def _tell(line: str) -> None:
    click.echo(f"celery-idem: {line}", err=True)


def _leave(number: int, frame: FrameType | None) -> None:
    """Where no command runs that it could be passed on to: what is owned is given back."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main(prog_name="celery-idem")

"""``celery -A PROJECT idem ...``: the ledger for operators.

Owns commands and their output. Must not contain logic that a library user could need.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from celery_idem.config import Settings
from celery_idem.errors import IdemError
from celery_idem.keys import iso


@click.group()
def idem() -> None:
    """Look after the run ledger of celery_idem.

    The exit status is 0 if the command was done, 1 if the ledger cannot be used (the reason is
    written to stderr), and 2 if the command line is wrong.
    """


@idem.command()
@click.pass_context
def upgrade(ctx: click.Context) -> None:
    """Create the ledger's tables, or bring them to the version of this release."""
    from celery_idem.ledger import migrations

    with closing(_database(ctx)) as database, _told():
        before = migrations.version(database)
        migrations.upgrade(database)
        after = migrations.version(database)
    if before == after:
        click.echo(f"The ledger has version {after}: nothing to do.")
    else:
        click.echo(f"The ledger went from {before or 'no tables'} to version {after}.")


@idem.command()
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show what the ledger holds: runs, leases, history, tasks that claim.

    Changes nothing. Where there are no tables yet it says so, with exit status 1.
    """
    import json

    from celery_idem.cli import overview

    settings = _settings(ctx)
    with _told():
        found = overview.gather(settings)
    click.echo(json.dumps(found, indent=2) if as_json else overview.text(found))


@idem.command()
@click.argument("entry")
@click.option("--note", help="Why, for whoever asks.")
@click.pass_context
def pause(ctx: click.Context, entry: str, note: str | None) -> None:
    """Stop emitting slots of a schedule entry, until it is resumed.

    All beats see it within a second, and keep to it over restarts. Runs that are recorded go on.
    """
    from celery_idem.cli import entries

    with _told():
        click.echo(entries.pause(ctx.obj.app, entry, note))


@idem.command()
@click.argument("entry")
@click.pass_context
def resume(ctx: click.Context, entry: str) -> None:
    """Emit slots of a paused entry again, from now on.

    Slots that were due during the pause, or were missed before it, are left out.
    """
    from celery_idem.cli import entries

    with _told():
        click.echo(entries.resume(ctx.obj.app, entry))


@idem.command()
@click.argument("entry")
@click.option("--from", "start", required=True, help="ISO 8601 with a zone: 2026-03-29T00:00Z")
@click.option("--to", "end", required=True, help="The same; slots of this instant are left out.")
@click.option("--dry-run", is_flag=True, help="Change nothing; list the slots.")
@click.pass_context
def backfill(ctx: click.Context, entry: str, start: str, end: str, dry_run: bool) -> None:
    """Emit the slots of an entry between two instants that are not recorded yet.

    A slot that beats or another backfill emit as well is one run. Start deadline and expires of the
    entry do not hold for these runs.
    """
    from celery_idem.cli import entries

    with _told():
        for line in entries.backfilled(ctx.obj.app, entry, start, end, dry_run):
            click.echo(line)


@idem.command()
@click.option("--here", is_flag=True, help="Count the beats of this host only.")
@click.option("--beats", default=1, show_default=True, help="So many must tick.")
@click.pass_context
def health(ctx: click.Context, here: bool, beats: int) -> None:
    """Tell whether beats are at work: exit status 0 if they are, 1 if not.

    A beat that ticks has told the ledger so within the last minute. One that hangs, or whose clock
    is so far off that it emits nothing, has not.
    """
    import socket

    from celery_idem.health import health as look

    with _told():
        found = look(ctx.obj.app, host=socket.gethostname() if here else None, beats=beats)
    for beat in found.beats:
        click.echo(f"beat {beat.host} {beat.pid}, since {iso(beat.started_at)}")
    if found.trouble is not None:
        raise click.ClickException(found.trouble)


class _told:
    """Turns an error of the package into one line and exit status 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, IdemError):
            raise click.ClickException(str(error)) from error


def _settings(ctx: click.Context) -> Settings:
    # As workers do before they read them: in a Django project, the database may be Django's.
    ctx.obj.app.loader.import_default_modules()
    with _told():
        return Settings.of(ctx.obj.app)


def _database(ctx: click.Context) -> Any:
    from celery_idem.ledger.database import Database

    settings = _settings(ctx)
    with _told():
        return Database(
            settings.database_url, settings.database_engine_options, settings.database_schema
        )

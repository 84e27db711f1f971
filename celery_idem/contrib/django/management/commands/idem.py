"""``manage.py idem ...``: what ``celery -A PROJECT idem ...`` does.

Owns the way there. Must not know which commands there are.
"""

from __future__ import annotations

from argparse import REMAINDER
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError

from celery_idem.contrib.django.database import loaded_app


class Command(BaseCommand):  # type: ignore[misc]
    """The ledger for operators."""

    help = "Look after the run ledger of celery_idem, as 'celery -A PROJECT idem' does."
    requires_system_checks: list[str] = []  # noqa: RUF012 - as Django has it

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("args", nargs=REMAINDER, help="status, upgrade; --help lists all")

    def handle(self, *args: str, **_: Any) -> None:
        (found,) = entry_points(group="celery.commands", name="idem")
        try:
            found.load().main(
                args=list(args),
                prog_name="manage.py idem",
                standalone_mode=False,
                obj=SimpleNamespace(app=loaded_app()),
            )
        except click.ClickException as exc:
            raise CommandError(exc.format_message(), returncode=exc.exit_code) from exc

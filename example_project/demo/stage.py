"""Put the parts of a demo together, run it, and take everything down again.

Owns: the order in which things are started and ended, and what is printed around the show.
Must not know: options as text, signals.
"""

from __future__ import annotations

import argparse
import secrets
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from example_project.demo.fleet import Fleet, MemberFailed
from example_project.demo.killer import Killer, NothingToKill
from example_project.demo.observe import Observer
from example_project.demo.parts import PartMissing, choose
from example_project.demo.redelivery import Redelivery
from example_project.demo.report import print_stock_verdict, print_verdict
from example_project.demo.screen import Screen
from example_project.demo.story import BEATS, WORKERS, Story


def run(options: argparse.Namespace, directory: Path) -> int:
    """Run the demo with its files in `directory`; return the exit status."""
    console = Console(highlight=False)
    if not console.is_terminal:
        # A file has no width; rich would take 80, which is too narrow for the verdict's remarks.
        console = Console(highlight=False, width=100)
    screen = Screen(console)
    try:
        with ExitStack() as stack:
            story = _prepare(options, directory, stack, screen, console)
            screen.start()
            stack.callback(screen.stop)
            verdict = story.play()
    except (PartMissing, MemberFailed, NothingToKill) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    if options.stock:
        print_stock_verdict(console, verdict, story.failures, BEATS)
        return 1 if story.failures or not verdict.executions else 0
    print_verdict(console, verdict, story.failures, story.killer.losses if story.killer else [])
    return 1 if story.failures or verdict.wrong or not verdict.due else 0


def _prepare(
    options: argparse.Namespace,
    directory: Path,
    stack: ExitStack,
    screen: Screen,
    console: Console,
) -> Story:
    """Start the servers; everything that is started ends with `stack`, in reverse order."""
    parts = choose(options.broker, options.database, directory, stack, screen.note)
    # A name of its own: servers that stay may hold the rows and messages of earlier demos.
    shop = f"shop-{secrets.token_hex(3)}"
    scheduler = "stock" if options.stock else "idem"
    who = "Celery's own scheduler" if options.stock else "celery_idem"
    console.print(f"{BEATS} beats and {WORKERS} workers with {who}", style="bold")
    console.print(f"Database: {parts.database}. Broker: {parts.broker}.", style="dim")
    if not options.stock:
        console.print(
            "The beats agree through the ledger, so they publish each slot about once. As brokers "
            "may deliver a message again, the demo sends some messages up to three times more.",
            style="dim",
        )
    if options.broker:
        stack.callback(parts.delete_queue, shop)
    fleet = Fleet(parts, shop, scheduler, directory)
    stack.callback(lambda: fleet.end(fleet.members))
    observer = Observer(parts.database_url, shop)
    stack.callback(observer.close)
    if options.stock:
        return Story(fleet, observer, screen, options.seconds)
    redelivery = Redelivery(parts, shop)
    return Story(fleet, observer, screen, options.seconds, redelivery, Killer(fleet, observer))

"""The parts of the campaign.

Owns which there are, how the kills are divided among them, and which are left out here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from tests.chaos import keep
from tests.chaos.campaign import Part, Say, run_part
from tests.chaos.faults import ALL, ONLY_BEATS, ONLY_KILLS
from tests.chaos.report import Report, report
from tests.chaos.zombies import run_zombies
from tests.processes import python_path

Runner = Callable[[int, Path, Say], Report]

#: Those of `DEFAULT` make a campaign.
NAMES = ("kills", "faults", "rabbitmq", "clocks", "defaults", "beats", "zombies")
DEFAULT = ("faults", "rabbitmq", "clocks", "defaults", "beats", "zombies")
#: SIGKILLs at default settings.
AT_DEFAULTS = 10
#: Where Debian's package and others keep the library that shifts clocks.
FAKETIME = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")
SHIFTED = Path(__file__).with_name("shifted")
#: Settings that the other parts shorten.
DEFAULTS = ("idem_lease", "idem_max_attempts", "beat_scheduler", "broker_transport_options")
#: Seconds by which the clock of a process is wrong.
SHIFTS = {"beat0": 300, "beat1": -300, "worker0": 300, "worker1": -300}


def make_parts(options: Any) -> tuple[dict[str, Runner], list[str]]:
    """The parts to run, and remarks about those that are left out."""
    wanted = [name for name in NAMES if name in (options.part or DEFAULT)]
    left_out = []
    library = next((found for pattern in FAKETIME for found in glob(pattern)), None)
    if "clocks" in wanted and library is None:
        wanted.remove("clocks")
        left_out.append("Left out: clocks, as there is no libfaketime (Debian: libfaketime)")
    kills = options.kills - (AT_DEFAULTS if "defaults" in wanted else 0)
    shares = _divided(max(0, kills), [name for name in wanted if name in SHARES])
    common: dict[str, Any] = {"broker": options.broker, "seconds": options.seconds}
    faults = Part("faults", shares.get("faults", 0), weights=ALL, **common)
    only_kills = replace(faults, name="kills", kills=shares.get("kills", 0), weights=ONLY_KILLS)
    on_rabbitmq = replace(
        faults,
        name="rabbitmq",
        kills=shares.get("rabbitmq", 0),
        broker="rabbitmq",
        weights={kind: weight for kind, weight in ALL.items() if kind not in LOSES},
        # By default a message is lost that was written to a connection which was just cut.
        settings={"broker_transport_options": {"confirm_publish": True}},
    )
    makers: dict[str, Callable[[], Runner]] = {
        "kills": lambda: partial(_run, only_kills),
        "faults": lambda: partial(_run, faults),
        "rabbitmq": lambda: partial(_run, on_rabbitmq),
        "clocks": lambda: partial(_run, with_clocks(faults, shares["clocks"], str(library))),
        "defaults": lambda: partial(_run, at_defaults(faults)),
        "beats": lambda: partial(_run, of_beats(faults, options.beats)),
        "zombies": lambda: partial(run_zombies, options.zombies),
    }
    return {name: makers[name]() for name in wanted}, left_out


#: By these RabbitMQ loses messages; without them it keeps also those outside of the schedule.
LOSES = ("crash broker", "flush broker")
#: Of the kills that are left, so many parts go to each.
SHARES = {"kills": 4, "faults": 4, "rabbitmq": 2, "clocks": 1}


def _divided(kills: int, names: list[str]) -> dict[str, int]:
    total = sum(SHARES[name] for name in names)
    shares = {name: kills * SHARES[name] // total for name in names}
    if names:
        shares[names[0]] += kills - sum(shares.values())
    return shares


def _run(part: Part, seed: int, directory: Path, say: Say) -> Report:
    outcome = run_part(part, seed, directory, say)
    found = report(outcome)
    if found.broken:
        keep.keep(outcome, directory)
    return found


def with_clocks(part: Part, kills: int, library: str) -> Part:
    """Beats and workers whose wall clocks are minutes apart; leases and trust know others."""

    def preload(seat: str) -> dict[str, str]:
        if seat not in SHIFTS:
            return {}
        return {
            "PYTHONPATH": os.pathsep.join([str(SHIFTED), python_path()]),
            "IDEM_CHAOS_FAKETIME": library,
            "IDEM_CHAOS_SHIFT": f"{SHIFTS[seat]:+d}s",
        }

    # Without chains: what is to come at a given time comes minutes early or late.
    return replace(
        part, name="clocks", kills=kills, weights=ONLY_KILLS, preload=preload, chains=False
    )


def of_beats(part: Part, kills: int) -> Part:
    """One beat after the other is killed, with two left; workers are idle, so that slots tell how
    late they were published.
    """
    return replace(
        part,
        name="beats",
        kills=kills,
        lease=60.0,
        weights=ONLY_BEATS,
        gap=(0.1, 1.1),
        half=(0.0, 0.01),
        settings=dict.fromkeys(DEFAULTS, "default"),
        chains=False,
        one_down=True,
    )


def at_defaults(part: Part) -> Part:
    """Settings as they come: a lease of a minute, and a broker that gives nothing back."""
    return replace(
        part,
        name="defaults",
        kills=AT_DEFAULTS,
        lease=60.0,
        weights={"kill child": 1, "kill worker": 1},
        gap=(3.0, 5.0),
        half=(0.5, 1.5),
        settings=dict.fromkeys(DEFAULTS, "default"),
        chains=False,
    )

"""What is kept of a part that failed.

Owns the files beside the logs: faults, findings, the ledger's tables and the effects.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.campaign import Outcome
from tests.chaos.report import broken


def keep(outcome: Outcome, directory: Path) -> None:
    """Writes them into the part's folder, where the logs and the bodies' lines are."""
    _write(directory / "faults.json", [asdict(one) for one in outcome.faults])
    _write(directory / "broken.json", broken(outcome))
    _write(directory / "verdict.json", asdict(outcome.verdict))
    _write(directory / "runs.json", list(outcome.facts.runs.values()))
    _write(directory / "history.json", outcome.facts.history)
    _write(directory / "leases.json", outcome.facts.leases)
    _write(directory / "effects.json", outcome.facts.effects)
    _write(directory / "bodies.json", [asdict(one) for one in outcome.facts.bodies.values()])


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, default=str))

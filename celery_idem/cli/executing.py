"""A command that is executed once, on whichever host it is begun first.

Owns the way from a claim to an exit status: of the command here, or of the one that was executed
elsewhere, which the ledger keeps with the end of its run. Must not know command lines.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from celery_idem.cli.command import Command
from celery_idem.cli.guard import NOT_EXECUTABLE
from celery_idem.errors import LeaseLost
from celery_idem.keys import RunKey
from celery_idem.lease import MARGIN
from celery_idem.ledger import Ledger
from celery_idem.once import Block, Job
from celery_idem.run import Run, RunRow, RunState

#: As in sysexits.h: to be tried again; nobody will.
TRY_AGAIN, GIVEN_UP = 75, 70

#: Seconds between two looks at a run that goes on elsewhere: the first, which doubles, the longest.
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_STATUS = re.compile(r"exit status (\d+)")


@dataclass(frozen=True)
class Execution:
    """One use of `celery-idem exec`.

    Attributes:
        wait: for the end of a command that is executed elsewhere.
        tell: writes a line for people.
    """

    ledger: Ledger
    job: Job
    key: RunKey
    words: Sequence[str]
    wait: bool
    tell: Callable[[str], None]

    def status(self) -> int:
        """The exit status of the command, after its end.

        Raises:
            LedgerError: the ledger did not answer; nothing was run.
        """
        told = False
        while True:
            block = Block(self.ledger, self.job, self.key)
            with block as run:
                if run is not None:
                    return self._run(block, run)
            row = self.ledger.read(self.key)
            if row is not None and not row.state.final:
                if not self.wait:
                    self.tell(f"{self.key} is a duplicate: its command is executed elsewhere")
                    return TRY_AGAIN
                if not told:
                    self.tell(f"{self.key} is a duplicate: waiting for its command elsewhere")
                told, row = True, self._awaited(row)
            if row is not None and row.state.final:
                return self._elsewhere(row, told)

    def _run(self, block: Block, run: Run) -> int:
        margin = self.job.lease * MARGIN
        command = Command(self.words)
        # What is left of the lease when it is not trusted any more is for the command to end in.
        try:
            status = command.run(lambda: run.trusted_for > 0, min(1.0, margin / 4), margin / 2)
        except OSError as exc:
            self.tell(f"{self.words[0]} cannot be started: {exc}")
            status = NOT_EXECUTABLE
        if command.was_ended:
            raise LeaseLost(run.key.text, run.fence, "its command was ended with its lease")
        if status:
            block.end(run, RunState.FAILED, f"exit status {status}")
        return status

    def _awaited(self, row: RunRow) -> RunRow | None:
        """The run when it has ended, or as soon as it can be claimed."""
        pause = _PAUSE
        seen: RunRow | None = row
        while seen is not None and (seen.lease_seconds or 0.0) > 0 and not seen.state.final:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            seen = self.ledger.read(self.key)
        return seen

    def _elsewhere(self, row: RunRow, told: bool) -> int:
        if row.state is RunState.SUCCEEDED:
            status, how = 0, "has ended with exit status 0"
        elif row.state is RunState.FAILED:
            found = _STATUS.fullmatch(row.error or "")
            status = int(found.group(1)) if found else 1
            how = f"has ended with exit status {status}" if found else f"has failed: {row.error}"
        else:
            status, how = GIVEN_UP, f"is {row.state.label}: {row.error}"
        if not told:
            self.tell(f"{row.key} is a duplicate: its command {how}")
        return status

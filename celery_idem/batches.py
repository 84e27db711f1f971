"""Due slots on their way: some at a time, recorded, or left by an outage.

Owns these three forms. Must not know how a slot is recorded or published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from celery_idem.due import Due

#: Waits for the answer of a verb that was begun.
Answer = Callable[[], Any]


@dataclass(slots=True)
class Batch:
    """Slots that are recorded by one statement.

    Attributes:
        name: by which the ledger knows who has recorded a slot.
        answer: None if the ledger is away.
    """

    dues: Sequence[Due]
    name: str
    answer: Answer | None = None


@dataclass(slots=True)
class Left:
    """A slot that an outage has kept from being emitted in order.

    Attributes:
        recorded: the ledger has it.
        sent: it was published from here.
        looked_after: somebody else publishes it: another beat, or the ledger has it as due.
    """

    due: Due
    recorded: bool = False
    sent: bool = False
    looked_after: bool = False

    @property
    def done(self) -> bool:
        return self.recorded and (self.sent or self.looked_after)


class Source:
    """Due slots, some at a time.

    Attributes:
        error: what has ended them; those before it are emitted first.
    """

    def __init__(self, dues: Iterable[Due]) -> None:
        self._rest = iter(dues)
        self.error: Exception | None = None

    def take(self, number: int) -> list[Due]:
        """The next ones, at most `number`; fewer only if these are the last."""
        taken: list[Due] = []
        try:
            for due in islice(self._rest, number):
                taken.append(due)
        except Exception as exc:
            self.error = exc
        return taken

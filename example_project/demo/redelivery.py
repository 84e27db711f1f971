"""Send messages again, as a broker does that redelivers.

Owns: which messages are sent again, how often and when. The first copy goes out at once, while
the message may still be executing; the others when that has long ended.
Must not know: celery_idem. A copy is the same message, header by header, that the beat sent.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from example_project import effects
from example_project.demo.parts import Parts
from example_project.demo.watch import copies

#: how many more copies a message gets, by turns; the turns do not fit the schedule's, so that each
#: entry gets all of them
TURNS = (0, 2, 1, 0, 3)
#: seconds between the copies of a message
PAUSE = 1.5


class Redelivery:
    """Sends copies of one shop's messages."""

    def __init__(self, parts: Parts, shop: str) -> None:
        """Connect to nothing yet."""
        self._parts = parts
        self._shop = shop
        self._engine = effects.connect(parts.database_url)
        self._last_id = 0
        self._seen = 0
        self._waiting: list[tuple[float, dict[str, Any]]] = []

    @property
    def idle(self) -> bool:
        """Whether no copy waits to be sent."""
        return not self._waiting

    def step(self, now: float) -> None:
        """Look for new messages and send the copies that are due at `now` (monotonic seconds)."""
        for row in self._new():
            turn = TURNS[self._seen % len(TURNS)]
            self._seen += 1
            self._waiting += [(now + PAUSE * number, row) for number in range(turn)]
        due = [row for when, row in self._waiting if when <= now]
        self._waiting = [(when, row) for when, row in self._waiting if when > now]
        if due:
            self._send(due)

    def _new(self) -> list[dict[str, Any]]:
        c = copies.c
        query = select(copies).where(c.id > self._last_id, c.shop == self._shop, c.pid != 0)
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query.order_by(c.id)).mappings()]
        self._last_id = max([self._last_id, *(row["id"] for row in rows)])
        return rows

    def _send(self, rows: list[dict[str, Any]]) -> None:
        with self._parts.broker_connection() as broker, broker.Producer() as producer:
            for row in rows:
                message = json.loads(row["message"])
                producer.publish(
                    message["body"],
                    routing_key=self._shop,
                    headers=message["headers"],
                    serializer="json",
                    correlation_id=message["headers"]["id"],
                )
        with self._engine.begin() as connection:
            fields = ("shop", "entry", "slot", "message")
            again = [{"pid": 0, **{name: row[name] for name in fields}} for row in rows]
            connection.execute(copies.insert(), again)

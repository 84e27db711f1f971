"""How often, and how soon, a verb looks again at a row that others keep changing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

#: Each means that the row was changed, or was held by a transaction, between a read and a write.
ROUNDS = 20

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # Seconds.


def rounds() -> Iterator[None]:
    """Up to `ROUNDS` tries, the first two at once, then with growing random pauses between them.

    All of them take less than a second of pauses. Without these, twenty tries are over in the time
    of one slow COMMIT, and those who contend for a row hinder each other. Pauses are random in
    their whole length, so that contenders who met once do not meet again ("full jitter":
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """
    yield
    for n in range(ROUNDS - 1):
        if n:
            time.sleep(random.uniform(0, min(_FIRST_PAUSE * 2**n, _LONGEST_PAUSE)))
        yield

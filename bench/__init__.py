"""What celery_idem costs, beside what there is without it: ``python -m bench``, or ``make bench``.

Each module of `MODULES` has a function ``measure(servers: Servers) -> Iterator[Row]``. A row
compares two things that were measured in turn, in one run on one machine: the machine's speed and
its other load cancel out, so ratios can be compared where times cannot.
Must not be imported by the package or by its tests: no test asserts a time.
"""

from __future__ import annotations

#: Modules of this package that measure, in the order in which they are run.
MODULES = ("claim", "worker", "beat", "beats", "memory", "locks")

"""A sample of the tests that differ in their parameters alone.

Owns the choice which parameters a test is run with if time counts (`make test`), and that no test
is left out altogether. Must not know what is tested.

    @pytest.mark.sample("postgres-*")     # The others: `make thorough`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytest

#: Set for all of them.
VARIABLE = "IDEM_THOROUGH"


def divide(items: Sequence[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Those to be run, and those that are left out.

    Raises:
        pytest.UsageError: a sample has nothing of its test.
    """
    if os.environ.get(VARIABLE):
        return list(items), []
    taken: list[pytest.Item] = []
    left: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    tests = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if _is_left_out(item):
            left[test].append(item)
        else:
            taken.append(item)
            tests.add(test)
    for test in left.keys() - tests:
        raise pytest.UsageError(f"{test}: its mark `sample` fits none of its parameters")
    return taken, [item for items in left.values() for item in items]


def _is_left_out(item: pytest.Item) -> bool:
    patterns = [pattern for mark in item.iter_markers("sample") for pattern in mark.args]
    _, has_parameters, rest = item.nodeid.partition("[")
    name = rest.removesuffix("]")
    return bool(patterns and has_parameters) and not any(fnmatchcase(name, p) for p in patterns)

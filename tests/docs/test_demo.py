"""What the README shows of the demo.

That a demo still prints it is looked at where one is run: `tests/acceptance/test_demo.py`.
"""

from __future__ import annotations

import re

from tests.docs.demo import MARK, shape
from tests.docs.markdown import marked
from tests.docs.project import README

SHOWN = marked(README, MARK)


def test_what_is_shown_is_a_good_ending() -> None:
    due, executions = (
        int(found)
        for label in ("slots due", "executions")
        for found in re.findall(rf"^ *{label} +(\d+)", SHOWN, re.MULTILINE)
    )
    assert due == executions > 0
    assert re.search(r"^ *slots executed not exactly once +0$", SHOWN, re.MULTILINE)


def test_shapes_differ_where_words_do() -> None:
    assert shape("slot 10:15:00  a 3 → 1") == shape("slot 10:15:05  a 12 → 1")
    assert shape("2 workers run") != shape("2 workers walk")

"""A key goes from message to message, in every history of a few copies."""

from __future__ import annotations

import pytest

from celery_idem.ledger.memory import MemoryLedger
from tests.model.hands import RULES, Broken, Search


def test_each_message_is_executed_once_in_every_history() -> None:
    assert Search().run() > 1000


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_without_any_one_rule_a_promise_breaks(rule: type[MemoryLedger]) -> None:
    with pytest.raises(Broken):
        Search(rule).run()

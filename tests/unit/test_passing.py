"""Headers that a body passes on name no run that is being executed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context

from celery_idem import IdempotentTask, RunKey
from celery_idem.keys import STAMP, Stamp
from celery_idem.passing import executing, without_anothers
from celery_idem.policy import Overlap
from tests.unit.beats import at

SLOT = at("2026-03-29T01:30:00")


def stamp(entry: str, signing_key: str | None = "secret") -> dict[str, Any]:
    key = RunKey.for_slot("shop", entry, SLOT)
    written = Stamp(key, entry, pause_on_failure=True, overlap=Overlap.SKIP)
    return written.write({"mine": 1}, "shop.bill", signing_key)


def bill() -> None: ...


@pytest.fixture
def task() -> Any:
    app = Celery("shop", broker="memory://", set_as_current=False)
    return app.task(name="shop.bill", base=IdempotentTask, shared=False)(bill)


def passed(task: Any, headers: dict[str, Any] | None, *executed: dict[str, Any] | None) -> Any:
    """What is left of `headers` in bodies of messages with these, one within the other."""
    with ExitStack() as stack:
        for theirs in executed:
            stack.enter_context(executing(Context(headers=theirs)))
        return without_anothers(task, headers, {"task_id": "one"})


def test_a_stamp_goes_as_a_whole(task: Any) -> None:
    left = passed(task, stamp("nightly"), stamp("nightly"))
    assert left == {"mine": 1}
    assert set(STAMP) > stamp("nightly").keys() - {"mine"}


def test_another_stamp_of_the_same_slot_stays_as_a_whole(task: Any) -> None:
    """Of what a body backfills, for one."""
    assert passed(task, stamp("bill"), stamp("nightly")) == stamp("bill")


def test_a_body_within_a_body_may_have_it_from_without(task: Any) -> None:
    for executed in ((stamp("nightly"), None), (stamp("nightly"), stamp("other"))):
        assert passed(task, stamp("nightly"), *executed) == {"mine": 1}


def test_that_a_message_was_put_back_is_not_passed_on(task: Any) -> None:
    """Or the other one would be taken for one that comes again, and get no key."""
    assert passed(task, {"idem_put_back": 2, "mine": 1}, {"idem_put_back": 2}) == {"mine": 1}


def test_where_nothing_is_executed_headers_are_what_they_are(task: Any) -> None:
    assert passed(task, stamp("nightly")) == stamp("nightly")
    assert passed(task, None) is None
    assert passed(task, {"idem_key": "order-1"}) == {"idem_key": "order-1"}


def test_a_body_is_left_with_what_was_there_before(task: Any) -> None:
    with executing(Context(headers=stamp("nightly"))):
        assert passed(task, {"x": 1}, stamp("other")) == {"x": 1}
        assert passed(task, stamp("other")) == stamp("other")
    assert passed(task, stamp("nightly")) == stamp("nightly")

"""Equal values have one canonical text: however they were passed, before and after the wire."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads
from pydantic import BaseModel

from celery_idem.canonical import DEEPEST, canonical
from celery_idem.errors import NotCanonical

NOON = datetime(2026, 3, 29, 12, tzinfo=timezone.utc)
NOWHERE = datetime(2026, 1, 1, tzinfo=timezone.utc).replace(tzinfo=None)
Pair = namedtuple("Pair", "a b")


class Size(Enum):
    LARGE = "L"


class Number(IntEnum):
    ONE = 1


@dataclass
class Order:
    number: int
    lines: tuple[str, ...] = ()


class Model(BaseModel):
    number: int
    day: date


class Name(str):
    """A text of somebody's own."""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (1.5, "1.5"),
        ("ä", '"ä"'),
        (Name("x"), '"x"'),
        (Number.ONE, "1"),
        (Size.LARGE, '"L"'),
        ((1, 2), "[1,2]"),
        (Pair(1, 2), "[1,2]"),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset({"b", "a"}), '["a","b"]'),
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        (OrderedDict(b=1, a=2), '{"a":2,"b":1}'),
        ({1: 2, None: 3}, '{"1":2,"null":3}'),
        ({Size.LARGE: 1}, '{"L":1}'),
        (date(2026, 3, 29), '"2026-03-29"'),
        (time(12, 30), '"12:30:00"'),
        (NOON, '"2026-03-29T12:00:00Z"'),
        (NOON.astimezone(timezone(timedelta(hours=2))), '"2026-03-29T12:00:00Z"'),
        (NOON.replace(tzinfo=None), '"2026-03-29T12:00:00"'),
        (timedelta(minutes=1.5), '"90.0 s"'),
        (Decimal("1.00"), '"1"'),
        (Decimal("1E+2"), '"100"'),
        (Decimal("-0.0"), '"0"'),
        (Decimal("10"), '"10"'),
        (-0.0, "0.0"),
        (NOWHERE.replace(year=1), '"0001-01-01T00:00:00"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (b"\x01\xff", '"01ff"'),
        (Order(7, ("a",)), '{"lines":["a"],"number":7}'),
        (Model(number=7, day=date(2026, 3, 29)), '{"day":"2026-03-29","number":7}'),
    ],
)
def test_a_value_has_one_text(value: Any, text: str) -> None:
    assert canonical(value) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "arguments['order'] = <object object"),
        ({"lines": [object()]}, "arguments['order']['lines'][0]"),
        ({1, object()}, "an element of arguments['order']"),
        (float("nan"), "use a finite one"),
        (float("inf"), "use a finite one"),
        ({(1, 2): 3}, "a key of arguments['order']"),
        ({1: "a", "1": "b"}, "two of its keys are '1' on their way"),
        (lambda: None, "a function has no canonical form: pass a number"),
        (Order, "a type has no canonical form"),
    ],
)
def test_what_has_none_is_an_error_that_says_where(value: Any, said: str) -> None:
    with pytest.raises(NotCanonical) as caught:
        canonical({"order": value}, "arguments")
    assert said in str(caught.value)


def test_decimals_are_not_rounded_by_anybodys_context() -> None:
    long = "1234567890123456789.0123456789"
    with localcontext() as context:
        context.prec = 6
        assert canonical(Decimal(long)) == f'"{long}"'
        assert canonical(Decimal(long[:-1] + "8")) != canonical(Decimal(long))


def test_an_instant_at_the_end_of_the_calendar_has_a_text() -> None:
    last = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2)))
    assert canonical(last) == '"9999-12-31T23:00:00-02:00"'


def test_what_never_ends_is_an_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotCanonical, match=f"more than {DEEPEST} levels"):
        canonical(value)


def test_a_key_of_a_dict_may_not_be_a_list() -> None:
    with pytest.raises(NotCanonical, match="a key of value"):
        canonical({("a",): 1})


#: What Celery's own serializer can take along.
SENT = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.uuids()
    | st.dates()
    | st.datetimes(timezones=st.just(timezone.utc)),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.integers(), inner)
    ),
    max_leaves=10,
)


@given(SENT)
def test_a_value_has_the_same_text_after_the_wire(value: Any) -> None:
    assert canonical(loads(dumps(value))) == canonical(value)


@given(SENT, SENT)
def test_values_that_differ_for_json_have_two_texts(one: Any, other: Any) -> None:
    plain = [json.loads(canonical(value)) for value in (one, other)]
    assert (canonical(one) == canonical(other)) == (json.dumps(plain[0]) == json.dumps(plain[1]))

"""How soon a verb looks again at a row that others keep changing."""

from __future__ import annotations

import time

import pytest

from celery_idem.ledger.rounds import ROUNDS, rounds


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each pause; nobody sleeps."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_the_first_two_tries_come_at_once(pauses: list[float]) -> None:
    tries = rounds()
    next(tries)
    next(tries)
    assert pauses == []


def test_all_tries_take_less_than_a_second_of_pauses(pauses: list[float]) -> None:
    assert len(list(rounds())) == ROUNDS
    assert len(pauses) == ROUNDS - 2
    assert sum(pauses) < 1.0


def test_contenders_pause_for_different_times(pauses: list[float]) -> None:
    list(rounds())
    one, pauses[:] = list(pauses), []
    list(rounds())
    assert not set(one) & set(pauses)


def test_pauses_grow_beyond_a_slow_commit(pauses: list[float]) -> None:
    """Twenty quick tries were over while one transaction was written to a slow disk."""
    for _ in range(20):
        list(rounds())
    assert sum(pauses) / 20 > 0.1

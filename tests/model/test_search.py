"""The promises hold in every history of every search, and each rule and each guard is needed."""

from __future__ import annotations

import pytest

from tests.model.alphabets import ALPHABETS
from tests.model.mutations import MUTATIONS, Mutation
from tests.model.rules import Alphabet
from tests.model.search import search

#: Fewer worlds than a search has, at least: it must not become empty unnoticed.
SMALLEST = 100


@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_every_promise_holds_in_every_history(alphabet: Alphabet) -> None:
    found = search(alphabet)
    assert not found.history, "\n".join(found.history)
    assert found.worlds > SMALLEST


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_without_any_one_rule_or_guard_a_promise_breaks(mutation: Mutation) -> None:
    found = search(ALPHABETS[mutation.search], mutation.ledger, mutation.rules)
    assert found.broken == mutation.broken, "\n".join(found.history)

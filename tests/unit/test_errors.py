"""Every error survives the way from a pool process to its parent, and says what it is about."""

from __future__ import annotations

import inspect
import io
import pickle
from multiprocessing import Pipe
from typing import Any

import pytest
from billiard.reduction import ForkingPickler
from celery.exceptions import ImproperlyConfigured as CeleryImproperlyConfigured
from celery.utils.serialization import find_pickleable_exception, get_pickleable_exception

from celery_idem import errors

#: One of each, and what its text must tell: the thing, the value, the way out.
SAMPLES: dict[type[errors.IdemError], tuple[errors.IdemError, list[str]]] = {
    errors.IdemError: (errors.IdemError("anything"), ["anything"]),
    errors.ImproperlyConfigured: (
        errors.ImproperlyConfigured("idem_lease", -1, "it must be between 1 and 86400 seconds"),
        ["idem_lease", "-1", "between 1 and 86400 seconds"],
    ),
    errors.InvalidSchedule: (
        errors.InvalidSchedule("every never", "its period must be positive"),
        ["'every never'", "its period must be positive"],
    ),
    errors.InvalidRunKey: (
        errors.InvalidRunKey("a\0b", "it must not contain a NUL character"),
        ["run key 'a\\x00b'", "it must not contain a NUL character"],
    ),
    errors.InvalidHeader: (
        errors.InvalidHeader("idem_slot", "tomorrow", "not an ISO 8601 instant in UTC"),
        ["idem_slot", "'tomorrow'", "not an ISO 8601 instant in UTC"],
    ),
    errors.NotCanonical: (
        errors.NotCanonical("arguments['order']", object, "pass a number or a text"),
        ["arguments['order'] = <class 'object'>", "pass a number or a text"],
    ),
    errors.DuplicateRun: (
        errors.DuplicateRun("shop:bill=7", "its run is being executed", "5f3a"),
        ["shop:bill=7", "not executed once more", "its run is being executed"],
    ),
    errors.AlreadyScheduled: (
        errors.AlreadyScheduled("shop:bill=7", "its run is scheduled", "5f3a"),
        ["shop:bill=7", "not published once more", "its run is scheduled", "5f3a"],
    ),
    errors.KeyReused: (
        errors.KeyReused("shop:bill=7", "its run has ended: succeeded", "5f3a"),
        ["shop:bill=7", "other arguments (its run has ended: succeeded)", "check_payload = False"],
    ),
    errors.LedgerError: (
        errors.LedgerError("the ledger's tables are absent from x", "run 'idem upgrade'"),
        ["tables are absent from x", "run 'idem upgrade'"],
    ),
    errors.LedgerUnavailable: (
        errors.LedgerUnavailable("the ledger's database x does not answer", "check the URL"),
        ["database x does not answer", "check the URL"],
    ),
    errors.LedgerVersionMismatch: (
        errors.LedgerVersionMismatch("0002", "0001", "install a newer celery-idem"),
        ["0002", "0001", "install a newer celery-idem"],
    ),
    errors.LeaseLost: (
        errors.LeaseLost("shop:x", 3, "the ledger has it running at fence 4"),
        ["shop:x", "3", "the ledger has it running at fence 4"],
    ),
    errors.ResultLost: (
        errors.ResultLost("shop:bill", "failed ValueError: no"),
        ["shop:bill", "failed ValueError: no", "lost"],
    ),
    errors.CommitUnknown: (errors.CommitUnknown("shop:bill"), ["shop:bill", "COMMIT"]),
    errors.RunDead: (
        errors.RunDead("shop:bill", "its owner is gone"),
        ["shop:bill", "its owner is gone"],
    ),
    errors.LockNotAcquired: (
        errors.LockNotAcquired("stock:tea", 2.5),
        ["'stock:tea'", "not free", "2.5 s"],
    ),
    errors.Contended: (
        errors.Contended("stock:tea", 0.0, "skip", "an earlier run goes on", 1.5),
        ["an earlier run goes on"],
    ),
    errors.LockLost: (
        errors.LockLost("stock:tea", 7, "it was released"),
        ["'stock:tea'", "7", "it was released"],
    ),
    errors.LockReentered: (
        errors.LockReentered("stock:tea"),
        ["'stock:tea'", "held by the caller already", "not reentrant"],
    ),
    errors.NoCurrentRun: (errors.NoCurrentRun(), ["current_run()", "base=IdempotentTask"]),
}
ALL = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, errors.IdemError)
]
each = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


def facts(error: BaseException) -> tuple[Any, ...]:
    return type(error), error.args, str(error), vars(error)


def by_pickle(error: Exception) -> Any:
    return pickle.loads(pickle.dumps(error))


def by_oldest_pickle(error: Exception) -> Any:
    """Protocol 0 takes another way through an object."""
    return pickle.loads(pickle.dumps(error, 0))


def by_billiard(error: Exception) -> Any:
    """As a pool sends it."""
    file = io.BytesIO()
    ForkingPickler(file).dump(error)
    return pickle.loads(file.getvalue())


def by_celery(error: Exception) -> Any:
    """As a task's failure is made ready for its result."""
    return by_pickle(get_pickleable_exception(error))


def by_a_pipe(error: Exception) -> Any:
    here, there = Pipe()
    with here, there:
        here.send(error)
        return there.recv()


WAYS = [by_pickle, by_oldest_pickle, by_billiard, by_celery, by_a_pipe]


def test_there_is_a_sample_of_every_error() -> None:
    assert set(SAMPLES) == set(ALL)


@each
@pytest.mark.parametrize("way", WAYS)
def test_an_error_survives_pickling(kind: type[errors.IdemError], way: Any) -> None:
    error, _ = SAMPLES[kind]
    assert facts(way(error)) == facts(error)
    assert facts(way(way(error))) == facts(error)


@each
def test_celery_takes_an_error_as_it_is(kind: type[errors.IdemError]) -> None:
    """Else it would be a parent class of it, or a text, in the result."""
    error, _ = SAMPLES[kind]
    found = find_pickleable_exception(error)
    assert found is not None and facts(found) == facts(error)
    assert get_pickleable_exception(error) is error


@each
def test_an_error_names_the_thing_the_value_and_the_way_out(
    kind: type[errors.IdemError],
) -> None:
    error, parts = SAMPLES[kind]
    for part in parts:
        assert part in str(error)


@each
def test_every_error_is_documented_and_of_one_tree(kind: type[errors.IdemError]) -> None:
    assert kind.__doc__
    assert issubclass(kind, errors.IdemError)


def test_errors_are_those_that_users_would_catch() -> None:
    assert issubclass(errors.ImproperlyConfigured, CeleryImproperlyConfigured)
    assert issubclass(errors.InvalidRunKey, ValueError)
    assert issubclass(errors.InvalidHeader, ValueError)
    assert issubclass(errors.InvalidSchedule, ValueError)
    assert issubclass(errors.NoCurrentRun, LookupError)
    assert issubclass(errors.LedgerVersionMismatch, errors.LedgerError)
    assert issubclass(errors.LedgerUnavailable, errors.LedgerError)


@pytest.mark.parametrize("value", ["x" * 100_000, list(range(100_000)), {"a": "b" * 1000}])
@pytest.mark.parametrize("way", WAYS)
def test_a_value_of_any_size_is_limited(value: object, way: Any) -> None:
    for error in (
        errors.InvalidRunKey(value, "too long"),
        errors.InvalidHeader("idem_slot", value, "too long"),
    ):
        assert len(str(error)) < 200
        assert facts(way(error)) == facts(error)


def test_a_value_that_cannot_be_pickled_does_not_hide_the_error() -> None:
    error = errors.InvalidRunKey(lambda: None, "it must be a str, not function")
    shown = by_celery(error)
    assert "it must be a str, not function" in str(shown)


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("nobody looks at me")


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidSchedule(Silent(), "it has no slots"),
        errors.ImproperlyConfigured("idem_lease", Silent(), "a number"),
    ],
)
def test_a_value_that_cannot_be_shown_does_not_hide_the_error(error: Exception) -> None:
    assert "<Silent, whose repr raises RuntimeError>" in str(error)

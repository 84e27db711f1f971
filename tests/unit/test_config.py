"""Settings and options: what is accepted, and what is said of the rest."""

from __future__ import annotations

import pickle
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery

from celery_idem import IdempotentTask, ImproperlyConfigured
from celery_idem.config import DEFAULT_DATABASE_URL, PREFIX, Settings, as_text, option
from celery_idem.policy import CatchUp, OnCrash, OnDatabaseError, OnDuplicate, Overlap, Unstamped

#: Possible values of each setting, with what becomes of them.
GOOD: dict[str, list[tuple[Any, Any]]] = {
    "enabled": [(True, True), (False, False)],
    "database_url": [("postgresql://u@h/d", "postgresql://u@h/d")],
    "database_engine_options": [({}, {}), ({"pool_size": 3}, {"pool_size": 3})],
    "database_schema": [(None, None), ("jobs", "jobs")],
    "create_tables": [(False, False)],
    "redis_url": [(None, None), ("rediss://:x@h/1", "rediss://:x@h/1")],
    "namespace": [("shop", "shop"), ("x" * 64, "x" * 64), ("läden", "läden")],
    "lease": [(1, 1.0), (2.5, 2.5), (timedelta(minutes=2), 120.0), (86_400, 86_400.0)],
    "max_attempts": [(1, 1), (1000, 1000)],
    "catchup": [("latest", CatchUp.LATEST), (CatchUp.ALL, CatchUp.ALL), ("none", CatchUp.NONE)],
    "catchup_window": [(0, 0.0), (timedelta(days=7), 604_800.0)],
    "start_deadline": [(None, None), (90, 90.0), (timedelta(hours=1), 3600.0)],
    "overlap": [
        ("allow", Overlap.ALLOW),
        ("skip", Overlap.SKIP),
        (Overlap.BUFFER_ONE, Overlap.BUFFER_ONE),
    ],
    "jitter": [(0, 0.0), (2.5, 2.5), (timedelta(minutes=5), 300.0)],
    "pause_on_failure": [(True, True), (False, False)],
    "on_crash": [("retry", OnCrash.RETRY), ("abandon", OnCrash.ABANDON)],
    "on_database_error": [("retry", OnDatabaseError.RETRY), ("run", OnDatabaseError.RUN)],
    "on_duplicate": [
        ("raise", OnDuplicate.RAISE),
        ("replay", OnDuplicate.REPLAY),
        (OnDuplicate.IGNORE, OnDuplicate.IGNORE),
    ],
    "store_result": [(True, True), (False, False)],
    "unstamped": [
        ("task_id", Unstamped.TASK_ID),
        ("reject", Unstamped.REJECT),
        ("run", Unstamped.RUN),
    ],
    "signing_key": [(None, None), ("secret", "secret")],
}

#: Impossible values of each setting, also of the wrong type, by a part of what is said.
REFUSED: dict[str, dict[str, list[Any]]] = {
    "enabled": {"True or False": [None, 1, 0, "yes", "False", []]},
    "database_url": {"SQLAlchemy URL": ["nowhere", "/tmp/x", "", None, b"sqlite://", 5, {}]},
    "database_engine_options": {"create_engine": [None, [], "pool_size=3", 1]},
    "database_schema": {"not empty": ["", 5, b"x", []]},
    "create_tables": {"True or False": [None, 1, "no"]},
    "redis_url": {
        "must begin with one of redis://, rediss://": ["", "h", "amqp://h", 5, b"redis://h", []],
        "or be None": ["http://h"],
    },
    "namespace": {
        "must not be empty": [""],
        "must be a str, not ": [5, None, b"shop"],
        "without ':'": ["a:b"],
        "NUL": ["a\0b"],
        "not valid Unicode": ["\ud800"],
        "at most 64 bytes": ["x" * 65, "ä" * 33],
    },
    "lease": {
        "between 1 and 86400 seconds": [0, 0.9, -1, 86_401, timedelta(days=2)],
        "between 1 and": [float("nan"), float("inf")],
        "seconds or a timedelta": [None, True, "60", [60], 1j],
    },
    "max_attempts": {"at least 1": [0, -1, 1.0, "5", None, True]},
    "catchup": {"allowed are 'latest', 'all', 'none'": ["later", None, 1, "LATEST", []]},
    "catchup_window": {
        "between 0 and": [-1, timedelta(days=-1), 10**9],
        "seconds or a timedelta": [None, "1 day"],
    },
    "start_deadline": {
        "between 1 and": [0, 0.5, -1, 10**9, float("nan")],
        " seconds, or None": [0],
        "seconds or a timedelta, or None": ["60", True],
    },
    "overlap": {"allowed are 'allow', 'skip', 'buffer_one'": ["wait", None, True, 1]},
    "jitter": {
        "between 0 and 86400": [-1, 86_401, float("nan")],
        "seconds or a timedelta": [None, "60", True],
    },
    "pause_on_failure": {"True or False": [None, 1, "yes"]},
    "on_crash": {"allowed are 'retry', 'abandon'": ["die", None, 0, {}]},
    "on_database_error": {"allowed are 'retry', 'run'": ["ignore", None, True]},
    "on_duplicate": {"allowed are 'raise', 'replay', 'ignore'": ["wait", None, True]},
    "store_result": {"True or False": [None, 1, "yes"]},
    "unstamped": {"allowed are 'task_id', 'reject', 'run'": ["keep", None, 5]},
    "signing_key": {"not empty": ["", b"secret", 5]},
}
BAD: dict[str, list[tuple[Any, str]]] = {
    name: [(value, said) for said, values in groups.items() for value in values]
    for name, groups in REFUSED.items()
}


def cases(table: dict[str, list[tuple[Any, Any]]]) -> list[Any]:
    return [
        pytest.param(name, value, wanted, id=f"{name}-{number}")
        for name, values in table.items()
        for number, (value, wanted) in enumerate(values)
    ]


def make_app(name: str = "shop", **settings: Any) -> Celery:
    app = Celery(name, set_as_current=False)
    app.conf.update(settings)
    return app


def test_each_setting_is_covered() -> None:
    """The tables above name every setting."""
    assert GOOD.keys() == BAD.keys() == {field.name for field in fields(Settings)}


@pytest.mark.parametrize(("name", "value", "wanted"), cases(GOOD))
def test_a_possible_value_is_accepted(name: str, value: Any, wanted: Any) -> None:
    """Under its name with the prefix, as what the code works with."""
    settings = Settings.read(make_app(**{PREFIX + name: value}))
    assert getattr(settings, name) == wanted
    assert type(getattr(settings, name)) is type(wanted)


@pytest.mark.parametrize(("name", "value", "said"), cases(BAD))
def test_an_impossible_value_is_refused(name: str, value: Any, said: str) -> None:
    """The error names the setting, the value and what is allowed."""
    with pytest.raises(ImproperlyConfigured) as caught:
        Settings.read(make_app(**{PREFIX + name: value}))
    assert caught.value.setting == PREFIX + name
    text = str(caught.value)
    shown = type(value).__name__ if name == "signing_key" else value
    assert text.startswith(f"{PREFIX}{name} = {shown!r} is not possible: ")
    assert said in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [("database_url", "postgresql//user:swordfish@host/name"), ("signing_key", b"swordfish")],
)
def test_an_error_does_not_tell_a_secret(name: str, value: Any) -> None:
    """It ends up in logs."""
    with pytest.raises(ImproperlyConfigured) as caught:
        Settings.read(make_app(**{PREFIX + name: value}))
    assert "swordfish" not in str(caught.value)


def test_without_settings_there_are_defaults() -> None:
    """An app that says nothing gets a file, and its own name as the namespace."""
    settings = Settings.read(make_app())
    assert settings == Settings(namespace="shop")
    assert settings.database_url == DEFAULT_DATABASE_URL
    assert (settings.lease, settings.max_attempts) == (60.0, 5)


@pytest.mark.parametrize(
    ("main", "namespace"),
    [(None, "celery"), ("", "celery"), ("shop.jobs", "shop.jobs"), ("a:b", "a.b")],
)
def test_the_apps_name_is_the_namespace(main: Any, namespace: str) -> None:
    """Taken as it is where it can be one; nobody has to rename an app."""
    assert Settings.read(make_app(main)).namespace == namespace


@pytest.mark.parametrize(
    "main", ["x" * 200, "ö" * 64, "nul\0", "\0", "\ud800"], ids=["long", "wide", "a", "b", "half"]
)
def test_an_app_of_any_name_has_a_namespace(main: str) -> None:
    """Also a name that could not be given as the setting: the result can be."""
    namespace = Settings.read(make_app(main)).namespace
    assert Settings.read(make_app(idem_namespace=namespace)).namespace == namespace


def test_an_unknown_setting_is_refused() -> None:
    """A slip of the pen must not silently mean the default."""
    with pytest.raises(ImproperlyConfigured, match="did you mean 'idem_lease'") as caught:
        Settings.read(make_app(idem_leese=5))
    assert str(caught.value).startswith("idem_leese = 5 is not possible: there is no such setting")
    for field in fields(Settings):
        assert PREFIX + field.name in str(caught.value)


def test_an_unknown_setting_unlike_any_other_has_no_hint() -> None:
    """The list of all settings is enough then."""
    with pytest.raises(ImproperlyConfigured) as caught:
        Settings.read(make_app(idem_xyzzy=None))
    assert "did you mean" not in str(caught.value)


def test_settings_of_others_are_left_alone() -> None:
    """Only names with the prefix are ours."""
    assert Settings.read(make_app(idempotent=1, lease=-5, redbeat_lock_key="x")) == Settings(
        namespace="shop"
    )


# -- Django's style ------------------------------------------------------------------------------


def django_app(**settings: Any) -> Celery:
    app = Celery("shop", set_as_current=False)
    app.config_from_object(type("settings", (), settings), namespace="CELERY")
    return app


def test_settings_of_a_django_project() -> None:
    """config_from_object(namespace="CELERY"): CELERY_IDEM_LEASE in the project's settings."""
    app = django_app(
        CELERY_IDEM_LEASE=90,
        CELERY_IDEM_DATABASE_URL="postgresql://u@h/d",
        CELERY_IDEM_CATCHUP="all",
        CELERY_TASK_ALWAYS_EAGER=True,
        IDEM_LEASE="of somebody else",
        DEBUG=True,
    )
    settings = Settings.read(app)
    assert settings.lease == 90.0
    assert settings.database_url == "postgresql://u@h/d"
    assert settings.catchup is CatchUp.ALL


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("CELERY_IDEM_LEASE", 0, "between 1"), ("CELERY_IDEM_LEESE", 5, "did you mean 'idem_lease'")],
)
def test_bad_settings_of_a_django_project(name: str, value: Any, said: str) -> None:
    """They are checked all the same."""
    with pytest.raises(ImproperlyConfigured, match=said):
        Settings.read(django_app(**{name: value}))


def test_settings_from_an_object_without_a_namespace() -> None:
    """config_from_object() of lower-case names."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object(type("settings", (), {"idem_lease": 7}))
    assert Settings.read(app).lease == 7.0


def test_settings_set_later_are_read() -> None:
    """`read` looks at the app as it is now, `of` only once."""
    app = make_app(idem_lease=5)
    assert Settings.of(app).lease == 5.0
    app.conf.idem_lease = 6
    assert Settings.read(app).lease == 6.0
    assert Settings.of(app).lease == 5.0


# -- options of a task ---------------------------------------------------------------------------


def bind_task(app: Celery, **options: Any) -> Any:
    options = {"base": IdempotentTask, "name": "bill", "shared": False, **options}

    @app.task(**options)  # type: ignore[untyped-decorator]
    def bill() -> None:
        """Never called."""

    app.finalize()
    return app.tasks["bill"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", "5"),
        ("on_crash", "die"),
        ("on_database_error", "ignore"),
        ("unstamped", "keep"),
    ],
)
def test_an_impossible_option_of_a_task_is_refused(name: str, value: Any) -> None:
    """As soon as the task is bound; the error names the task."""
    with pytest.raises(ImproperlyConfigured, match=f"^{name} of task bill = "):
        bind_task(make_app(), **{name: value})


@pytest.mark.parametrize("settings", [{"idem_lease": 0}, {"idem_leese": 5}])
def test_a_task_does_not_start_with_impossible_settings(settings: dict[str, Any]) -> None:
    """Not the first message: the first task that is bound meets them."""
    with pytest.raises(ImproperlyConfigured):
        bind_task(make_app(**settings))


def test_options_of_a_task_are_accepted() -> None:
    """As values and as strings."""
    task = bind_task(make_app(), max_attempts=1, on_crash=OnCrash.ABANDON, unstamped="run")
    assert (task.max_attempts, task.on_crash, task.unstamped) == (1, OnCrash.ABANDON, "run")


def test_an_option_of_a_task_may_be_written_as_its_setting_is() -> None:
    """In the decorator, in a base, and in the app's annotations; the nearest one counts."""
    app = make_app(task_annotations={"bill": {"idem_on_crash": "abandon"}})
    base = type("Base", (IdempotentTask,), {"abstract": True, "idem_max_attempts": 3})
    task = bind_task(app, base=base, idem_store_result=True, idem_check_payload=False)
    assert (task.max_attempts, task.on_crash) == (3, "abandon")
    assert (task.store_result, task.check_payload) == (True, False)
    assert bind_task(make_app(), base=base, max_attempts=4).max_attempts == 4
    base = type("Base", (IdempotentTask,), {"abstract": True, "max_attempts": 3})
    assert bind_task(make_app(), base=base, idem_max_attempts=4).max_attempts == 4
    with pytest.raises(ImproperlyConfigured, match=r"^max_attempts of task bill = 0 is"):
        bind_task(make_app(), idem_max_attempts=0)


def test_an_option_of_a_task_that_is_written_twice_is_refused_if_it_differs() -> None:
    assert bind_task(make_app(), idem_max_attempts=3, max_attempts=3).max_attempts == 3
    with pytest.raises(
        ImproperlyConfigured, match=r"^idem_max_attempts of task bill = 3 .* its max_attempts is 4"
    ):
        bind_task(make_app(), idem_max_attempts=3, max_attempts=4)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_attempt", "max_attempts"),
        ("max_atempts", "max_attempts"),
        ("maxAttempts", "max_attempts"),
        ("on_crsh", "on_crash"),
        ("on_crahs", "on_crash"),
        ("on_data_base_error", "on_database_error"),
        ("unstampd", "unstamped"),
        ("idem_max_attempt", "max_attempts"),
        ("idem_on_crsh", "on_crash"),
    ],
)
def test_a_misspelt_option_of_a_task_is_refused(name: str, meant: str) -> None:
    """It would silently mean the default; the error says what is meant."""
    with pytest.raises(ImproperlyConfigured) as caught:
        bind_task(make_app(), **{name: 3})
    text = str(caught.value)
    assert text.startswith(f"{name} of task bill = 3 is not possible: there is no such option; ")
    assert f"did you mean {meant!r}?" in text


def test_a_misspelt_option_of_a_base_is_refused() -> None:
    """Also where it comes by the app's annotations, or belongs to the app alone."""
    base = type("Base", (IdempotentTask,), {"abstract": True, "on_crsh": "abandon"})
    with pytest.raises(ImproperlyConfigured, match=r"^on_crsh of task bill = 'abandon'"):
        bind_task(make_app(), base=base)
    with pytest.raises(ImproperlyConfigured, match=r"^max_attempt of task bill = 3"):
        bind_task(make_app(task_annotations={"bill": {"max_attempt": 3}}))
    with pytest.raises(ImproperlyConfigured, match=r"^idem_lease of task bill = 3"):
        bind_task(make_app(), idem_lease=3)


def test_attributes_of_others_are_left_alone() -> None:
    """Those of Celery, of the project, and its methods."""
    others: dict[str, Any] = {
        "max_retries": 5,
        "retry_backoff": 2,
        "retry_kwargs": {"max_retries": 1},
        "autoretry_for": (OSError,),
        "rate_limit": "5/m",
        "attempts": 7,
        "min_attempts": 1,
        "stamped": True,
        "on_error": "mail",
        "lease": 9,
        "on_crashed": lambda self: None,
    }
    task = bind_task(make_app(), **others)
    assert (task.attempts, task.stamped, task.lease) == (7, True, 9)


def test_looking_at_a_task_does_not_bind_its_base() -> None:
    """Or all tasks would share the stack of their requests, and the app's annotations be lost."""
    bind_task(make_app())
    assert not vars(IdempotentTask).get("__bound__")
    assert IdempotentTask.request_stack is None


def test_an_option_that_is_not_given_has_the_default() -> None:
    """None means the setting."""
    assert option("task bill", "max_attempts", None, 7) == 7
    assert option("task bill", "max_attempts", 3, 7) == 3


def test_values_are_shown_as_people_write_them() -> None:
    """An enum by its string."""
    assert as_text(CatchUp.LATEST) == "latest"
    assert as_text(60.0) == "60.0"

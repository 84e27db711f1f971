"""What becomes of ``DATABASES`` as a URL of the ledger."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from celery_idem import ImproperlyConfigured
from celery_idem.ledger.url import is_in_memory, same_database

database = pytest.importorskip("celery_idem.contrib.django.database")


def url(vendor: str, **given: Any) -> str:
    made: str = database.url_of(
        SimpleNamespace(vendor=vendor, alias="default", settings_dict=given)
    )
    return made


@pytest.mark.parametrize(
    ("vendor", "given", "expected"),
    [
        ("sqlite", {"NAME": "/data/a.sqlite3"}, "sqlite:////data/a.sqlite3"),
        ("postgresql", {"NAME": "shop"}, "postgresql:///shop"),
        (
            "postgresql",
            {"NAME": "shop", "USER": "a@b", "PASSWORD": "p:/@", "HOST": "db", "PORT": "6432"},
            "postgresql://a%40b:p%3A%2F%40@db:6432/shop",
        ),
        (
            "postgresql",
            {"NAME": "shop", "HOST": "/run/pg", "OPTIONS": {"sslmode": "require", "pool": True}},
            "postgresql:///shop?host=%2Frun%2Fpg&sslmode=require",
        ),
        ("postgresql", {"OPTIONS": {"service": "main"}}, "postgresql://?service=main"),
        (
            "mysql",
            {"NAME": "shop", "HOST": "/run/my.sock", "OPTIONS": {"ssl": {"ca": "/ca.pem"}}},
            "mysql:///shop?ssl_ca=%2Fca.pem&unix_socket=%2Frun%2Fmy.sock",
        ),
        ("mysql", {"NAME": "shop", "HOST": "db", "PORT": 3307}, "mysql://db:3307/shop"),
    ],
)
def test_urls(vendor: str, given: dict[str, Any], expected: str) -> None:
    assert url(vendor, **given) == expected


def test_other_databases_are_refused_by_name() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"backends\.oracle.*CELERY_IDEM_DATABASE_URL"):
        url("oracle", ENGINE="django.db.backends.oracle")


def test_same_database() -> None:
    one = "postgresql://a:secret@localhost/shop"
    assert same_database(one, "postgres://b@127.0.0.1:5432/shop?sslmode=require")
    assert same_database("mysql://localhost/shop", "mariadb+pymysql://localhost:3306/shop")
    for other in (
        "postgresql://localhost/bakery",
        "postgresql://db/shop",
        "mysql://localhost/shop",
    ):
        assert not same_database(one, other)
    assert same_database("sqlite:///a.sqlite3", "sqlite:///./a.sqlite3")


def test_in_memory() -> None:
    assert is_in_memory(url("sqlite", NAME="file:memorydb_default?mode=memory&cache=shared"))
    assert is_in_memory(url("sqlite", NAME=":memory:"))
    assert not is_in_memory(url("sqlite", NAME="a.sqlite3"))
    assert not is_in_memory(url("postgresql", NAME="shop"))

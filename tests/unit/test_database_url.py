"""URLs of databases: what is accepted, and what is said of the rest."""

from __future__ import annotations

import pytest

from celery_idem.errors import ImproperlyConfigured
from celery_idem.ledger.url import parse, shown

SECRET = "swordfish"


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://u@h/d", "postgresql+psycopg"),
        ("postgres://u@h/d", "postgresql+psycopg"),
        ("postgres+psycopg://u@h/d", "postgresql+psycopg"),
        ("mysql://u@h/d", "mysql+pymysql"),
        ("mariadb://u@h/d", "mariadb+pymysql"),
    ],
)
def test_a_url_names_its_driver(url: str, driver: str) -> None:
    """Some hosts hand out ``postgres://``, which SQLAlchemy does not know."""
    assert parse(url).drivername == driver


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("oracle", "it must begin with postgresql, mysql, mariadb or sqlite"),
        ("nonsense+driver", "it must begin with postgresql, mysql, mariadb or sqlite"),
        ("postgresql+nonsense", "use postgresql+psycopg://"),
        ("postgresql+asyncpg", "use postgresql://"),
        ("postgresql+psycopg_async", "use postgresql://"),
        ("postgres+asyncpg", "use postgresql://"),
        ("mysql+aiomysql", "use mysql://"),
    ],
)
def test_a_url_that_can_never_work_says_what_to_write_instead(scheme: str, said: str) -> None:
    """With the setting's name and the value, without its password."""
    with pytest.raises(ImproperlyConfigured) as caught:
        parse(f"{scheme}://u:{SECRET}@h/d?password={SECRET}")
    text = str(caught.value)
    assert text.startswith("idem_database_url = '")
    assert "://u:***@h/d" in text
    assert said in text
    assert SECRET not in text


def test_a_url_is_shown_without_secrets() -> None:
    assert shown(parse(f"postgres://u:{SECRET}@h/d?password={SECRET}")) == (
        "postgresql+psycopg://u:***@h/d"
    )

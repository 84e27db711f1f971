"""Real servers for the tests: found or started, and a private place on them for each test.

Owns the order in which a server is looked for: the URL in the environment, a server on its default
port on this machine, a private one that lives as long as the test run. Where none of these works,
`ServiceMissing` says what was tried and what to install.
Must not know: Celery, celery_idem, pytest (tests/conftest.py makes fixtures of this).
"""

from __future__ import annotations

from tests.services.base import Broker, Service, ServiceMissing, find_service
from tests.services.mariadb import MARIADB, MYSQL
from tests.services.postgres import POSTGRES
from tests.services.rabbitmq import RABBITMQ
from tests.services.redis import REDIS

__all__ = [
    "MARIADB",
    "MYSQL",
    "POSTGRES",
    "RABBITMQ",
    "REDIS",
    "Broker",
    "Service",
    "ServiceMissing",
    "find_service",
]

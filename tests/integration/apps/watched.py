"""The app of `tasks`, whose signals leave rows in `facts`.

Owns: nothing else. Must not know: which test uses it.
"""

from __future__ import annotations

from tests.integration.apps.base import record_signals
from tests.integration.apps.tasks import app

__all__ = ["app"]

record_signals()

"""The app of `watched`, which counts deliveries and claims as well.

Owns: nothing else. Must not know: which test uses it.
"""

from __future__ import annotations

from tests.integration.apps.base import record_deliveries
from tests.integration.apps.watched import app

__all__ = ["app"]

record_deliveries()

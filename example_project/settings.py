"""The shop's settings: the environment, read once.

Owns: names and defaults of the variables; `app` has the table that explains them.
Must not know: what is made of them.
"""

from __future__ import annotations

import json
import os
from typing import Any


def _choice(name: str, *allowed: str) -> str:
    """Return a variable's value, by default the first of those allowed."""
    value = os.environ.get(name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it can be {' or '.join(allowed)}")
    return value


NAME = os.environ.get("SHOP_NAME", "shop")
BROKER_URL = os.environ.get("SHOP_BROKER_URL", "redis://127.0.0.1:6379/0")
BROKER_OPTIONS: dict[str, Any] = json.loads(os.environ.get("SHOP_BROKER_OPTIONS", "{}"))
DATABASE_URL = os.environ.get("SHOP_DATABASE_URL", "sqlite:///shop.sqlite3")
SCHEDULER = _choice("SHOP_SCHEDULER", "idem", "stock")
LEASE = float(os.environ.get("SHOP_LEASE", "60"))
STEP = int(os.environ.get("SHOP_STEP", "0"))
INCLUDE = [name for name in os.environ.get("SHOP_INCLUDE", "").split(",") if name]

#: the price of a day's subscription; not from the environment
BILL_CENTS = 4900

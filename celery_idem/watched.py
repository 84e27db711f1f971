"""A schedule that knows which of its entries were put in, replaced or taken out.

Owns the noting of these changes, so that a beat with many entries need not compare them all every
second. Must not know what an entry is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any


class Watched(dict[str, Any]):
    """A dict that notes the keys whose values may have changed, in any thread."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Not a set, which would stay as large as it once was.
        self._changed: deque[str] = deque()

    def changes(self) -> Iterator[str]:
        """The keys that were set or deleted since they were asked for last; some more than once."""
        while self._changed:
            yield self._changed.popleft()

    def all(self) -> dict[str, Any]:
        """All that is in it, in one step; changes that were made before are not told of."""
        self._changed.clear()
        return dict(self)

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)

    # Noted after the change: who asks in between finds it the next time.

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._changed.append(key)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._changed.append(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        value = super().setdefault(key, default)
        self._changed.append(key)
        return value

    def pop(self, key: str, *default: Any) -> Any:
        value = super().pop(key, *default)
        self._changed.append(key)
        return value

    def popitem(self) -> tuple[str, Any]:
        key, value = super().popitem()
        self._changed.append(key)
        return key, value

    def clear(self) -> None:
        keys = list(self)
        super().clear()
        self._changed.extend(keys)

    def update(self, *args: Any, **kwargs: Any) -> None:
        new = dict(*args, **kwargs)
        super().update(new)
        self._changed.extend(new)

    def __ior__(self, other: Any) -> Watched:  # type: ignore[override,misc]
        self.update(other)
        return self

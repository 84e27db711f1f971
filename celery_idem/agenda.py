"""Which entry is to be looked at next.

Owns the order of the moments at which to look at each. Must not know what is done then.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from datetime import datetime

from celery_idem.tracks import Track


class Agenda:
    """The tracks of a beat by their `Track.wake`; each is in it once.

    A track's moment changes only while it is taken out, or `disorder` is told of it.

    Arguments:
        tracks: all that are followed, as they are now and later.
    """

    def __init__(self, tracks: Mapping[str, Track]) -> None:
        self._tracks = tracks
        #: The tracks themselves, which are compared: pairs with their moments would take as much
        #: memory as they do.
        self._heap: list[Track] = []
        self._coming: set[Track] = set()
        self._is_ordered = True

    @property
    def next_moment(self) -> datetime | None:
        """When to `take` again; None: never."""
        self._order()
        return self._heap[0].wake if self._heap else None

    def __len__(self) -> int:
        return len(self._heap) + len(self._coming)

    def put(self, track: Track) -> None:
        """Have it in here from now on; it is not."""
        if track.wake is not None:
            self._coming.add(track)

    def disorder(self, *tracks: Track) -> None:
        """The moments of these have changed; none named: those of any."""
        # Costs time, but not for one that has come a moment ago and has no place yet.
        if not tracks or not self._coming.issuperset(tracks):
            self._is_ordered = False

    def take(self, now: datetime) -> Track | None:
        """Take out the one that has waited longest at `now`; None if none has to be looked at."""
        self._order()
        while self._heap and self._heap[0].is_awake(now):
            track = heapq.heappop(self._heap)
            if not track.gone:
                return track
        return None

    def _order(self) -> None:
        if len(self._heap) > 1.25 * len(self._tracks) + 1000:
            self._is_ordered = False  # Most of it is gone.
        if self._is_ordered and not self._coming:
            return
        coming = [track for track in self._coming if track.wake is not None]
        self._coming.clear()
        if self._is_ordered and len(coming) <= len(self._heap) / 8:
            for track in coming:
                heapq.heappush(self._heap, track)
            return
        if self._is_ordered:
            self._heap.extend(coming)
        else:
            self._heap = [track for track in self._tracks.values() if track.wake is not None]
        self._is_ordered = True
        heapq.heapify(self._heap)

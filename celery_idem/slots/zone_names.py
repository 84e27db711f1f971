"""One stable name for a time zone.

Owns how a time zone is written into a fingerprint and a message: never by a path of this machine
or an object's address, so that two hosts write the same.
Must not know any schedule.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from hashlib import blake2b
from typing import Final

from celery_idem.clock import UTC
from celery_idem.slots.zone import Zone

#: Years whose offsets identify a zone without a name.
_SAMPLED: Final = range(1970, 2038)
_REMEMBERED: Final = 64


def has_name(tz: tzinfo) -> bool:
    """True if the zone has a name of its own (zoneinfo, pytz), not just rules or an offset."""
    return bool(getattr(tz, "key", None) or getattr(tz, "zone", None))


def zone_name(tz: tzinfo) -> str:
    """``Europe/Berlin``, ``UTC``, ``UTC+02:00``, or a digest of the zone's offsets since 1970."""
    name = getattr(tz, "key", None) or getattr(tz, "zone", None)
    if name:
        return str(name)
    if isinstance(tz, timezone):
        return _fixed_name(tz.utcoffset(None))
    return _digest(tz)


def _fixed_name(offset: timedelta) -> str:
    # tzname() would give the free text that a fixed zone may carry.
    return str(timezone(offset)) if offset else "UTC"


#: Names found by sampling, by the zone's id. The zone is kept with its name, so that no other
#: object gets its id; some zones (dateutil's) have no hash.
_digests: dict[int, tuple[tzinfo, str]] = {}


def _digest(tz: tzinfo) -> str:
    if id(tz) not in _digests:
        if len(_digests) >= _REMEMBERED:
            _digests.clear()
        _digests[id(tz)] = tz, _sampled_name(Zone(tz))
    return _digests[id(tz)][1]


def _sampled_name(zone: Zone) -> str:
    offsets = [
        zone.offset(datetime(year, month, day, tzinfo=UTC)).total_seconds()
        for year in _SAMPLED
        for month in range(1, 13)
        for day in (1, 15)
    ]
    if len(set(offsets)) == 1:
        return _fixed_name(timedelta(seconds=offsets[0]))
    return "zone-" + blake2b(repr(offsets).encode(), digest_size=8).hexdigest()

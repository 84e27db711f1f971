"""What the errors of database drivers mean.

Owns one question, answered by SQLSTATE, error number or result code and never by the language of a
message where there is a code: is it worth to repeat the statement, is the database away, or did it
refuse the statement? Must not know what the statements mean.
"""

from __future__ import annotations

from enum import Enum

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from celery_idem.errors import LedgerError, LedgerUnavailable


class Failure(Enum):
    """Why a statement failed."""

    #: It met another one and was rolled back whole: repeat it.
    CONTENDED = "is too contended"
    #: The database is away, full, starting, stopping or read-only: it may come back.
    UNAVAILABLE = "does not answer"
    #: It will fail again.
    REFUSED = "refused a statement"


#: Serialization failure, deadlock, lock or statement timeout.
_CONTENDED_STATES = frozenset({"40001", "40P01", "55P03", "57014"})
#: Connection, resources, operator's intervention; invalid authorization (a password that is being
#: changed); no such database (that is being restored); read-only (a failover).
_UNAVAILABLE_STATES = ("08", "53", "57P", "28", "3D", "25006")

#: Record changed since last read, lock wait timeout, deadlock, query interrupted.
_CONTENDED_NUMBERS = frozenset({1020, 1205, 1213, 1317})
_UNAVAILABLE_NUMBERS = frozenset(
    {
        *(1021, 1114),  # disk or table full
        *(1040, 1129, 1152, 1184, 1203, 1226),  # too many connections, host blocked
        *(1044, 1045, 1049, 1698),  # access denied, unknown database
        *(1047, 1053, 1077, 1079),  # node not ready, shutdown
        *(1158, 1159, 1160, 1161, 1927, 4031),  # network, connection killed, idle for too long
        *(1290, 1792, 1836),  # read-only
        *range(2000, 2100),  # the client's own: cannot connect, server gone away, lost
    }
)

_SQLITE_BUSY, _SQLITE_LOCKED = 5, 6
_SQLITE_AWAY = frozenset({10, 13, 14})  # input or output, full, cannot open

#: What every driver calls its errors of the connection (PEP 249).
_WITHOUT_CODE = ("OperationalError", "InterfaceError")

_ADVICE = {
    Failure.CONTENDED: "it is tried again when the message comes again",
    Failure.UNAVAILABLE: "check idem_database_url and that the server can be reached from here",
}


def classify(error: BaseException) -> Failure:
    """What `error`, of a driver or of SQLAlchemy around it, means."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return Failure.UNAVAILABLE
        error = error.orig or error
    if isinstance(error, OSError | NoConnectionFree):
        return Failure.UNAVAILABLE
    module = type(error).__module__
    if module.startswith("sqlite3"):
        return _of_sqlite(error)
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str) and module.startswith("psycopg"):
        return _of_state(state)
    number = getattr(error, "errno", None) or (error.args[0] if error.args else None)
    if isinstance(number, int) and number:
        return _of_number(number)
    # No code: no server has answered.
    away = any(base.__name__ in _WITHOUT_CODE for base in type(error).__mro__)
    return Failure.UNAVAILABLE if away else Failure.REFUSED


def is_away(error: BaseException) -> bool:
    """True if the connection on which `error` was met is not to be used again."""
    return classify(error) is Failure.UNAVAILABLE


def translate(error: BaseException, failure: Failure, where: str) -> LedgerError:
    """The package's error for `error` in the database shown as `where`."""
    original = error.orig if isinstance(error, DBAPIError) else error
    reason = " ".join(str(original).split()) or type(original).__name__
    message = f"the ledger's database {where} {failure.value}: {reason}"
    if failure is Failure.REFUSED:
        return LedgerError(message)
    return LedgerUnavailable(message, _ADVICE[failure])


def _of_state(state: str) -> Failure:
    if state in _CONTENDED_STATES:
        return Failure.CONTENDED
    return Failure.UNAVAILABLE if state.startswith(_UNAVAILABLE_STATES) else Failure.REFUSED


def _of_number(number: int) -> Failure:
    if number in _CONTENDED_NUMBERS:
        return Failure.CONTENDED
    return Failure.UNAVAILABLE if number in _UNAVAILABLE_NUMBERS else Failure.REFUSED


def _of_sqlite(error: BaseException) -> Failure:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python 3.10 shows no code.
        locked = str(error) in ("database is locked", "database table is locked")
        return Failure.CONTENDED if locked else Failure.REFUSED
    primary = code & 0xFF  # The higher bits tell variants of a code apart.
    if primary in (_SQLITE_BUSY, _SQLITE_LOCKED):
        return Failure.CONTENDED
    return Failure.UNAVAILABLE if primary in _SQLITE_AWAY else Failure.REFUSED

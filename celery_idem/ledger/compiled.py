"""Statements made ready once, and run without SQLAlchemy's share of the time.

SQLAlchemy's `Connection.execute` takes about as long as the whole rest of a claim against a server
nearby. Owns the way around it: the text of a statement and the conversion of its values, kept per
database. Must not know what the statements mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect, Executable
from sqlalchemy.sql.compiler import SQLCompiler

#: A way to turn a value into what the driver takes.
Conversion = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement as a driver takes it.

    Attributes:
        text: the statement.
        order: names of the values for a driver that takes them by position, else None.
        constants: values that belong to the statement.
        conversions: for those values that have to be converted.
    """

    text: str
    order: Sequence[str] | None
    constants: Mapping[str, Any]
    conversions: Mapping[str, Conversion]

    def values(self, given: Mapping[str, Any]) -> Any:
        """`given`, converted, in the form that the driver takes."""
        values = {**self.constants, **given}
        for name, convert in self.conversions.items():
            values[name] = convert(values[name])
        if self.order is None:
            return values
        return tuple([values[name] for name in self.order])


def compile_statement(statement: Executable, dialect: Dialect, schema: str | None) -> Compiled:
    """Make `statement` ready. It must hold no list of values, as its text would vary."""
    compiled: SQLCompiler = statement.compile(  # type: ignore[attr-defined]
        dialect=dialect,
        schema_translate_map={None: schema} if schema else None,
        render_schema_translate=bool(schema),
    )
    conversions = {}
    for name, bind in compiled.binds.items():
        convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
        if convert is not None:
            conversions[name] = convert
    constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
    return Compiled(
        text=str(compiled),
        order=compiled.positiontup if compiled.positional else None,
        constants=constants,
        conversions=conversions,
    )

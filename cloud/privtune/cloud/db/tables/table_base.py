"""What all tables share."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, MetaData
from sqlalchemy.orm import DeclarativeBase

# Every constraint is named, so that migrations can alter it on SQLite and PostgreSQL alike.
_NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
Counter = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """Declarative base. Times are whole seconds since 1970, UTC."""

    metadata = MetaData(naming_convention=_NAMING)

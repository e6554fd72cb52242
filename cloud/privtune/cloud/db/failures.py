"""What a database's failures mean, as errors of this project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from privtune.shared.errors import CloudUnreachable, InternalError, InvalidInput, PrivTuneError, StorageFull

_DISK_TROUBLE = re.compile(
    r"disk is full|readonly database|read-only transaction|unable to open|disk I/O|no space left", re.IGNORECASE
)
_NO_TABLES = re.compile(r"no such table|relation \S+ does not exist")


@contextmanager
def translated() -> Iterator[None]:
    """Raise StorageFull, CloudUnreachable, InvalidInput or InternalError for what the database raises."""
    try:
        yield
    except PrivTuneError:
        raise
    except NoConnectionFree as error:
        raise CloudUnreachable("The cloud's database is too busy. Try again.", detail=str(error)) from error
    except DBAPIError as error:
        raise _meaning(error) from error


def _meaning(error: DBAPIError) -> PrivTuneError:
    detail = str(error.orig)
    if _DISK_TROUBLE.search(detail):
        return StorageFull("The cloud's database can't be written: disk full or read-only.", detail=detail)
    if _NO_TABLES.search(detail):
        return InternalError("No tables yet: run `privtune-cloud db upgrade`.", detail=detail)
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return CloudUnreachable("The cloud's database does not answer. Try again.", detail=detail)
    if isinstance(error, DataError) and "NUL" in detail:
        return InvalidInput("Text can't hold the character NUL.", detail=detail)
    return InternalError("The cloud's database refused a change.", detail=detail)

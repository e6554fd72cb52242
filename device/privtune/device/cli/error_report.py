"""How commands fail: with one clear line and a documented exit code; the details go to a private log."""

from __future__ import annotations

import errno
import functools
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from privtune.device.client.open_home import one_command
from privtune.shared.errors import InternalError, InvalidInput, PrivTuneError, StorageFull, is_failure, missing_package
from privtune.shared.printable import escaped, printable

P = ParamSpec("P")
R = TypeVar("R")

NO_HOME = (
    "There is no home folder: HOME is not set and this user is unknown to the system. Set PRIVTUNE_HOME or give --home "
    "FOLDER, and write paths without ~."
)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Log the details of a command's failure, and turn an unexpected exception into an InternalError."""

    @functools.wraps(command)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with one_command():
            return logged(*args, **kwargs)

    def logged(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except PrivTuneError as error:
            if error.detail:
                _log(kwargs.get("home"), f"{error.reason}: {error.message}\n{error.detail}")
            raise
        except BrokenPipeError:
            raise
        except ModuleNotFoundError as error:
            raise missing_package(error, "device") or _unexpected(error, kwargs.get("home")) from error
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise StorageFull(f"Can't write {error.filename or 'a file'}: {error.strerror}.") from error
            raise _unexpected(error, kwargs.get("home")) from error
        except BaseException as error:
            if not is_failure(error):
                raise
            if type(error).__module__.startswith("typer"):
                raise  # usage errors and exits, which typer prints itself
            if isinstance(error, RuntimeError) and "home directory" in str(error):
                # pathlib's, where neither HOME nor the system's list of users has one
                raise InvalidInput(NO_HOME, param="home") from None
            raise _unexpected(error, kwargs.get("home")) from error

    return inside


def report(error: PrivTuneError, *, debug: bool) -> int:
    """Print the error to stderr as one line, with --debug after its traceback. Returns the exit code."""
    if debug:
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(escaped(line), file=sys.stderr)
        if error.detail:
            print(f"detail: {escaped(error.detail)}", file=sys.stderr)
    print(f"privtune: {' '.join(printable(error.message).split())}", file=sys.stderr)
    return error.exit_code


def _unexpected(error: BaseException, home: object) -> InternalError:
    file = _log(home, "".join(traceback.format_exception(error)))
    where = f"The details are in {file} (private: read it before you share it)." if file else "Try --debug."
    return InternalError(f"Unexpected failure ({type(error).__name__}). {where}")


def _log(home: object, text: str) -> Path | None:
    from privtune.device.home.failure_log import log_failure
    from privtune.device.home.paths import default_home

    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    try:
        folder = home if isinstance(home, Path) else default_home()
    except RuntimeError:  # there is none
        return None
    return log_failure(folder, f"{stamp} {text}")

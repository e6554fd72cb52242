"""Optional packages: whether they are here, and how to install them where they are not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from privtune.shared.errors import PackageMissing
from privtune.shared.wording import install


def require(use: str, packages: Iterable[str], extra: str) -> None:
    """Raise PackageMissing for the first package that is not installed; none is imported.

    Args:
        use: what the packages are for, as the subject of the message with its verb: "surrogates need".
        packages: names on the package index; the modules have the same names, with '_' for '-'.
        extra: of PrivTune, with which they come.
    """
    for package in packages:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise PackageMissing(f"{use} the package {package}: {install(extra)}")

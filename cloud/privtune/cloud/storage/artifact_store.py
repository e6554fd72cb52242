"""Artifacts in the data folder itself; `bucket` keeps them elsewhere and has the same methods.

A unit is a file, or a folder with all that is in it, that is kept and fetched as one: an adapter, the checkpoints of a
job with one device, a table, a taught package. Whoever writes one writes it below the data folder, whole or not at all
(`privtune.shared.files`), and then pushes it; whoever reads one pulls it first. Units do not contain each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from privtune.shared.files import remove_folder


class ArtifactStore:
    """Units below a local folder, which is where they stay. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reach(self) -> None:
        """Raises InvalidInput or CloudUnreachable, for an operator to read, where artifacts can't be kept."""

    def push(self, unit: Path) -> None:
        """Keep a unit as it is on this disk, in place of an earlier one. Raises CloudUnreachable: nothing changed."""

    def pull(self, unit: Path) -> None:
        """Make a unit on this disk what is kept: the same files, by their hashes; none where none is kept.

        Raises CloudUnreachable, StorageFull, and ArtifactCorrupt for a unit of one file that is damaged. A damaged file
        of a folder is left out: who reads the folder checks that it is whole.
        """

    def kept(self, unit: Path) -> bool:
        """Whether there is such a unit. Raises CloudUnreachable."""
        return unit.exists()

    def measure(self, folder: Path) -> Iterator[tuple[PurePosixPath, int]]:
        """What is kept in a folder: paths below it, sizes in bytes. What goes meanwhile is left out."""
        for path in folder.rglob("*"):
            try:
                if path.is_file():
                    yield PurePosixPath(path.relative_to(folder).as_posix()), path.stat().st_size
            except OSError:
                continue

    def remove(self, folder: Path) -> None:
        """Remove all units in a folder, or one unit; nothing to do where nothing is. Raises OSError."""
        remove_folder(folder)

    def drop_unnamed(self, before: float) -> int:
        """Remove what interrupted pushes before this time (seconds since 1970) have left; returns how many files.

        Raises CloudUnreachable. Here a push changes nothing.
        """
        return 0

    def copies(self, folder: Path) -> set[str]:
        """Names of what is in a folder of this disk as a copy only. Here nothing is."""
        return set()

    def forget_copies(self, folder: Path, names: Collection[str]) -> None:
        """Free this disk of copies. What is open stays readable for whoever has opened it."""

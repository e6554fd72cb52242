"""A disk that may lose what was not flushed: rebuilt from recorded operations, as it may be after power was lost.

POSIX promises of a write only that `fsync` of the file brings it to the disk, and of a name (created, renamed, removed)
only that `fsync` of its folder does. What survives of the rest, and in which order, is the file system's choice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath

from tests.support.strace import Operation

_SECTOR = 512


class Loss(Enum):
    """What survives of that which was not flushed."""

    NOTHING_LOST = "all of it, as after a kill"
    BYTES = "names, but no bytes"
    NAMES = "neither bytes nor names"
    SOME = "what chance wants: of a folder the first of its changes, of a file any of its writes, torn between sectors"


@dataclass
class File:
    """now: bytes; flushed: those at the last flush; since: writes (offset, bytes) and sizes since then."""

    now: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, at: int, data: bytes | None) -> None:
        """Write at an offset, or cut or lengthen to a size."""
        self.since.append((at, data))
        _change(self.now, at, data)

    def flush(self) -> None:
        self.flushed, self.since = bytes(self.now), []

    def after(self, loss: Loss, chance: random.Random) -> bytes:
        """Its bytes when the power is back."""
        if loss is Loss.NOTHING_LOST:
            return bytes(self.now)
        found = bytearray(self.flushed)
        for at, data in self.since if loss is Loss.SOME else ():
            kept = chance.choice((0.0, chance.random(), 1.0))
            if data is None:
                if kept == 1.0:
                    _change(found, at, None)
            elif kept:
                _change(found, at, data if kept == 1.0 else data[: int(len(data) * kept) // _SECTOR * _SECTOR])
        return bytes(found)


@dataclass
class Folder:
    """now: what is in it; since: as it was at the last flush, and after each change since then."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    since: list[dict[str, File | Folder]] = field(default_factory=lambda: [{}])

    def change(self, name: str, node: File | Folder | None) -> None:
        """Give a name to a file or folder, or take it away."""
        self.rename("", name, node)

    def rename(self, old: str, name: str, node: File | Folder | None) -> None:
        """Two names in one change."""
        self.now = {key: value for key, value in self.now.items() if key not in (old, name)}
        self.now |= {} if node is None else {name: node}
        self.since.append(self.now)

    def flush(self) -> None:
        self.since = [self.now]

    def after(self, loss: Loss, chance: random.Random) -> dict[str, File | Folder]:
        """What is in it when the power is back."""
        if loss is Loss.SOME:
            return chance.choice(self.since)
        return self.since[0] if loss is Loss.NAMES else self.now


class Disk:
    """The folder `root`, empty at first. Apply recorded operations in order."""

    def __init__(self, root: Path) -> None:
        self._root, self._top = PurePosixPath(root), Folder()

    def apply(self, operation: Operation) -> None:
        """Do what was done. Raises KeyError or TypeError where the record has a gap."""
        if operation.kind == "send":
            return
        folder, name = self._parent(operation.path)
        node = folder.now.get(name) if name else self._top
        match operation.kind:
            case "create" if node is None:
                folder.change(name, File())
            case "mkdir":
                folder.change(name, Folder())
            case "unlink" | "rmdir":
                folder.change(name, None)
            case "rename":
                target, new = self._parent(operation.to)
                if target is folder:
                    folder.rename(name, new, node)
                else:
                    target.change(new, node)
                    folder.change(name, None)
            case "sync":
                if node is not None:
                    node.flush()
            case "write" | "truncate" if isinstance(node, File):
                at = len(node.now) if operation.at < 0 else operation.at
                node.change(at, operation.data if operation.kind == "write" else None)

    def after(self, loss: Loss, chance: random.Random | None = None) -> dict[str, bytes | None]:
        """What is on the disk when the power is back: files by path below the root, and folders as None."""
        found: dict[str, bytes | None] = {}
        _collect(self._top, "", loss, chance or random.Random(0), found)
        return found

    def _parent(self, path: str) -> tuple[Folder, str]:
        parts = PurePosixPath(path).relative_to(self._root).parts
        folder = self._top
        for part in parts[:-1]:
            found = folder.now[part]
            if not isinstance(found, Folder):
                raise TypeError(f"{part} of {path} is no folder")
            folder = found
        return folder, parts[-1] if parts else ""


def write(found: dict[str, bytes | None], folder: Path) -> None:
    """Lay out on a real disk what survived."""
    folder.mkdir(parents=True)
    for name, data in found.items():
        path = folder / name
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)


def _collect(folder: Folder, at: str, loss: Loss, chance: random.Random, found: dict[str, bytes | None]) -> None:
    for name, node in folder.after(loss, chance).items():
        if isinstance(node, File):
            found[at + name] = node.after(loss, chance)
        else:
            found[at + name] = None
            _collect(node, f"{at}{name}/", loss, chance, found)


def _change(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        at, data = len(content), bytes(max(0, at - len(content)))
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data

"""What a process does to the files below a folder, and what it sends, as strace sees it: every call, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILES = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir"
_BYTES = "write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,lseek,copy_file_range,sendfile,mmap"
_CALLS = f"{_FILES},{_BYTES},fsync,fdatasync,sync,syncfs,sync_file_range,sendto,sendmsg"
_HEX = r"((?:\\x[0-9a-f]{2})*)"
_LINE = re.compile(r"^(\d+) +([\d.]+) (.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+|\?)")
_TEXT = re.compile(rf'"{_HEX}"')
_FILE = re.compile(rf"(?:^|MAP_SHARED, )(AT_FDCWD|\d+)<{_HEX}>(\(deleted\))?")
_AT = {"openat": 1, "mkdirat": 1, "renameat": 2, "renameat2": 2, "unlinkat": 1}
_BY_NAME = {"open", "creat", "mkdir", "rename", "link", "symlink", "unlink", "rmdir", "truncate"}
_UNSEEN = {"link", "linkat", "symlink", "symlinkat", "truncate", "fallocate", "copy_file_range", "sendfile"}
_UNSEEN |= {"sync", "syncfs", "sync_file_range", "writev", "pwritev", "pwritev2", "creat"}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A call that succeeded.

    kind: create, mkdir, rename, unlink, rmdir, write, truncate, sync, or send.
    path: below the folder.
    to: new path of a rename.
    at: offset of a write, new size of a truncate.
    """

    time: float
    kind: str
    path: str
    to: str = ""
    at: int = 0
    data: bytes = b""


def missing() -> str:
    """Why calls can't be recorded here; empty where they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.NamedTemporaryFile() as log:
        done = subprocess.run(["strace", "-f", "-o", log.name, "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"strace may not trace a process here: {done.stderr.decode()[:200]}"


def under_strace(log: Path) -> list[str]:
    """What to write before a command, so that its calls are recorded. The command keeps its process id."""
    options = ["-D", "-f", "--seccomp-bpf", "-q", "-ttt", "-yy", "-xx", "-s", "67108864", "-e", "signal=none"]
    return ["strace", *options, "-e", f"trace={_CALLS}", "-o", str(log)]


def finished(log: Path, pid: int) -> None:
    """Wait until the record of a process that has ended is whole. Raises TimeoutError."""
    deadline, last = time.monotonic() + 60, f"{pid} "
    while time.monotonic() < deadline:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            ends = [line for line in file.read().decode(errors="replace").splitlines() if "+++ " in line]
        if any(line.startswith(last) for line in ends):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{log} does not end")


def operations(log: Path, folder: Path) -> Iterator[Operation]:
    """What was done below a folder, and every send. Raises ValueError for a call that the record does not cover."""
    inside = f"{os.path.realpath(folder)}/"
    offsets: dict[str, int] = {}
    for when, name, arguments, result in _calls(log):
        strings = _TEXT.findall(arguments)
        file = _FILE.search(arguments)
        path = _path(name, file, strings)
        if name in ("sendto", "sendmsg"):
            yield Operation(time=when, kind="send", path="", data=_bytes("".join(strings)))
        elif name == "openat" and path.startswith(inside):
            offsets[result] = 0
            if "O_CREAT" in arguments:
                yield Operation(time=when, kind="create", path=path)
            if "O_TRUNC" in arguments:
                yield Operation(time=when, kind="truncate", path=path)
            if "O_APPEND" in arguments:
                offsets[result] = -1
        elif not f"{path}/".startswith(inside) or (file is not None and file[3]):
            continue
        elif name == "mmap" and "MAP_SHARED" in arguments and "PROT_WRITE" in arguments and not path.endswith("-shm"):
            raise ValueError(f"{path} is written through memory, which no record shows")
        elif name in _UNSEEN:
            raise ValueError(f"the record does not cover {name} of {path}")
        elif name == "lseek" and file is not None and offsets.get(file[1], 0) >= 0:
            offsets[file[1]] = int(result)
        elif name == "write" and file is not None:
            data, at = _bytes(strings[-1])[: int(result)], offsets.get(file[1], 0)
            yield Operation(time=when, kind="write", path=path, at=at, data=data)
            offsets[file[1]] = at + len(data) if at >= 0 else at
        elif name == "pwrite64":
            at = int(arguments.rsplit(", ", 1)[1])
            yield Operation(time=when, kind="write", path=path, at=at, data=_bytes(strings[-1])[: int(result)])
        elif name == "ftruncate":
            yield Operation(time=when, kind="truncate", path=path, at=int(arguments.rsplit(", ", 1)[1]))
        elif name in ("fsync", "fdatasync"):
            yield Operation(time=when, kind="sync", path=path)
        elif name.startswith("rename"):
            yield Operation(time=when, kind="rename", path=path, to=_joined(arguments, strings[-1], place=1))
        elif name.startswith(("mkdir", "unlink", "rmdir")):
            kind = "rmdir" if "AT_REMOVEDIR" in arguments else name.removesuffix("at")
            yield Operation(time=when, kind=kind, path=path)


def _calls(log: Path) -> Iterator[tuple[float, str, str, str]]:
    """Time, name, arguments and result of each call that succeeded: a send where it began, any other where it ended."""
    began: dict[str, str] = {}
    with log.open(encoding="ascii") as lines:
        for line in lines:
            found = _LINE.match(line)
            if found is None:
                continue
            thread, when, text = found[1], float(found[2]), found[3]
            if text.endswith("<unfinished ...>"):
                text = text.removesuffix("<unfinished ...>").rstrip()
                if text.startswith("send"):
                    name, arguments = text.split("(", 1)
                    yield when, name, arguments, "0"
                else:
                    began[thread] = text
                continue
            if text.startswith("<... "):
                if thread not in began:
                    continue
                text = began.pop(thread) + text.split(" resumed>", 1)[1]
            call = _CALL.match(text)
            if call is not None and call[3] != "?" and int(call[3]) >= 0:
                yield when, call[1], call[2], call[3]


def _path(name: str, file: re.Match[str] | None, strings: list[str]) -> str:
    """The file that a call is about."""
    if name in _AT and strings:
        return os.path.join(_text(file[2]) if file else "", _text(strings[0]))
    if name in _BY_NAME:
        return _text(strings[0])
    return _text(file[2]) if file is not None else ""


def _joined(arguments: str, name: str, *, place: int) -> str:
    """A path that may be relative to the folder that is named before it."""
    folders = re.findall(rf"(?:AT_FDCWD|\d+)<{_HEX}>", arguments)
    return os.path.join(_text(folders[place]) if len(folders) > place else "", _text(name))


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _text(escaped: str) -> str:
    return os.fsdecode(_bytes(escaped))

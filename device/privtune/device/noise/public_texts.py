"""Texts that the owner has declared public, with or without a class. Kept in the device's home folder.

home/public/texts.txt      one text per line: frequencies, prototypes, importance
home/public/labelled.tsv   a class, a tab, and a text or word per line: task-aware clusters, importance
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privtune.shared.errors import DataInvalid, StorageFull
from privtune.shared.files import make_folder, replacing_file
from privtune.shared.plain_text import read_text

TEXTS, LABELLED = "texts.txt", "labelled.tsv"
MOST = 50_000  # lines that are used: more only costs time


@dataclass(frozen=True, kw_only=True)
class PublicTexts:
    """What may be learned from without accounting.

    texts: as declared.
    labelled: texts or words with their class 0..C-1, classes numbered in the order of their sorted names.
    """

    texts: tuple[str, ...] = ()
    labelled: tuple[tuple[str, int], ...] = ()

    @classmethod
    def load(cls, home: Path) -> PublicTexts:
        """Read the home folder; empty where the owner declared nothing. Raises DataInvalid."""
        folder = home / "public"
        texts = read_texts(folder / TEXTS) if (folder / TEXTS).exists() else ()
        labelled = read_labelled(folder / LABELLED) if (folder / LABELLED).exists() else ()
        return cls(texts=texts, labelled=labelled)


def read_texts(path: Path) -> tuple[str, ...]:
    """Non-empty lines, at most 50,000. Raises DataInvalid."""
    texts = tuple(line.strip() for line in _lines(path) if line.strip())[:MOST]
    if not texts:
        raise DataInvalid(f"{path.name} has no text; give one text per line")
    return texts


def read_labelled(path: Path) -> tuple[tuple[str, int], ...]:
    """Texts and class numbers, at most 50,000. Raises DataInvalid that names the line."""
    rows = []
    for number, line in enumerate(_lines(path)[:MOST], start=1):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or not label.strip() or not text.strip():
            raise DataInvalid(f"{path.name}, line {number}: give a class, a tab and a text or word")
        rows.append((label.strip(), text.strip()))
    names = sorted({label for label, _ in rows})
    if len(names) < 2:
        raise DataInvalid(f"{path.name} needs at least two classes, but has {len(names)}")
    return tuple((text, names.index(label)) for label, text in rows)


def declare(home: Path, *, texts: Path | None = None, labelled: Path | None = None) -> None:
    """Check the files and keep copies as this device's public texts. Raises DataInvalid, StorageFull."""
    for name, source, read in ((TEXTS, texts, read_texts), (LABELLED, labelled, read_labelled)):
        if source is None:
            continue
        read(source)
        try:
            make_folder(home / "public")
            with replacing_file(home / "public" / name) as scratch:
                scratch.write_bytes(source.read_bytes())
        except OSError as error:
            raise StorageFull(f"{home / 'public'} can't be written: {error.strerror}") from error


def _lines(path: Path) -> list[str]:
    return read_text(path).split("\n")

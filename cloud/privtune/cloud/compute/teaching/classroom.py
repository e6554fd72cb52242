"""Where teachings happen: their folders among the artifacts, and one result for each description.

teachings/RESULT/           package: taught.safetensors, card.json, manifest.json
teachings/RESULT.work/      what an interrupted teaching continues from; gone with success
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.out_of_memory import within_memory
from privtune.cloud.compute.teaching.lesson import Lesson
from privtune.cloud.compute.teaching.pieces import cut_into_pieces
from privtune.cloud.compute.teaching.training import Watch
from privtune.cloud.corpora import Corpora, Corpus
from privtune.cloud.storage import ArtifactStore
from privtune.shared import __version__
from privtune.shared.errors import JobConflict, JobPaused, StorageFull
from privtune.shared.files import held, make_folder
from privtune.shared.modeling.adapter_folder import base_sha256
from privtune.shared.modeling.load import load_task_model, load_tokenizer
from privtune.shared.modeling.partition import Partition
from privtune.shared.modeling.taught_package import read_card, write_taught_package
from privtune.shared.teaching_spec import TeachingSpec


@dataclass(frozen=True, kw_only=True)
class Result:
    """name: of the package's folder. card: what it says of itself. sources: names of the files it was made from."""

    name: str
    card: dict[str, Any]
    sources: tuple[str | None, str | None]


class Classroom:
    """Teaches on this machine, or finds what was taught before. max_bytes: of a teacher's states on disk."""

    def __init__(self, store: ArtifactStore, catalog: Catalog, corpora: Corpora, *, max_bytes: int) -> None:
        self._store, self._folder = store, store.folder / "teachings"
        self._catalog, self._corpora = catalog, corpora
        self._max_bytes = max_bytes
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def has(self, result: str) -> bool:
        """Whether the package of a result is here."""
        return self._store.kept(self._folder / result)

    def tidy(self, result: str, *, package: bool) -> None:
        """Delete what an interrupted teaching would continue from and, if `package`, the package.

        Nothing while it is worked on.
        """
        try:
            make_folder(self._folder)
            with held(self._folder / f".{result}.lock") as alone:
                if alone:
                    shutil.rmtree(self._folder / f"{result}.work", ignore_errors=True)
                    if package:
                        self._store.remove(self._folder / result)
        except OSError as error:
            raise StorageFull(f"the folder of teachings can't be written: {error.strerror}") from error

    def package(self, result: str, base_sha256: str) -> Path:
        """The folder of a result. Raises JobConflict where it is gone, or was not taught by these weights."""
        folder = self._folder / result
        self._store.pull(folder)
        if not folder.exists():
            raise JobConflict("the taught blocks are no longer here; ask the cloud to teach them again")
        if read_card(folder).get("base_sha256") != base_sha256:
            raise JobConflict("the blocks were taught by other weights than the model has now; ask for them again")
        return folder

    def teach(
        self,
        spec: TeachingSpec,
        watch: Watch,
        stopped: Callable[[], bool],
        cancelled: Callable[[], bool] = lambda: False,
        began: Callable[[str], None] = lambda name: None,
    ) -> Result:
        """The taught blocks of a description, from an earlier teaching of the same weights and text if there is one.

        stopped: asked after every step. cancelled: asked once stopped; what was done so far is then thrown away.
        began: told the result's name as soon as it is known.

        Raises JobPaused once stopped; DataInvalid, InvalidInput for the corpus; ModelNotFound, ModelUnsupported,
        NonFinite, CloudOutOfMemory, StorageFull; JobConflict while another process works on the same.
        """
        sources = self._catalog.files(spec.model), self._corpora.files(spec.corpus)
        corpus = self._corpora.read(spec.corpus, spec.text_column, spec.label_column)
        ref, classes = self._catalog.resolve(spec.model), max(2, len(corpus.label_names))
        model = load_task_model(ref, spec.task, num_labels=classes, seed=spec.seed)
        base = base_sha256(model, spec.task)
        name = spec.result_key(base, corpus.sha256)
        began(name)
        folder, work = self._folder / name, self._folder / f"{name}.work"
        try:
            make_folder(self._folder)
            with held(self._folder / f".{name}.lock") as alone:
                if not alone:
                    raise JobConflict("another process teaches the same blocks from the same text right now")
                if not self.has(name):
                    if not folder.exists():  # else it was written, and could not be kept
                        partition, tokenizer = Partition(model.to(self._device)), load_tokenizer(ref)
                        with _thrown_away(work, cancelled):
                            self._write(spec, corpus, partition, tokenizer, base, (folder, work), watch, stopped)
                    self._store.push(folder)
                self._store.pull(folder)
        except OSError as error:
            raise StorageFull(f"the folder of teachings can't be written: {error.strerror}; free room") from error
        return Result(name=name, card=read_card(folder), sources=sources)

    def _write(
        self,
        spec: TeachingSpec,
        corpus: Corpus,
        partition: Partition,
        tokenizer: Any,
        base: str,
        folders: tuple[Path, Path],
        watch: Watch,
        stopped: Callable[[], bool],
    ) -> None:
        folder, work = folders
        fingerprint = partition.fingerprint()
        pieces = cut_into_pieces(
            tokenizer,
            corpus.texts,
            corpus.labels,
            max_length=spec.max_length,
            most=spec.max_pieces,
            seed=spec.seed,
        )
        lesson = Lesson(
            partition,
            pieces,
            spec,
            work,
            device=self._device,
            max_bytes=self._max_bytes,
            watch=watch,
            stopped=stopped,
        )
        taught = within_memory(lesson.teach)
        card = {
            "model": spec.model,
            "base_sha256": base,
            "fingerprint": fingerprint,
            "corpus": {"name": corpus.name, "sha256": corpus.sha256, "texts": len(corpus.texts)},
            "labels": list(corpus.label_names),
            "settings": spec.model_dump(mode="json", exclude={"model", "corpus"}),
            **taught.figures,
            "version": __version__,
        }
        write_taught_package(folder, taught.state, card)
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _thrown_away(work: Path, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Delete what is kept to continue from, where nobody will: it was cancelled, or has failed."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, JobPaused) or cancelled():
            shutil.rmtree(work, ignore_errors=True)
        raise

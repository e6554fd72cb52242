"""`JobModel`: the tuned model of a job, in use on this device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from privtune.device.client.access import Access
from privtune.device.client.begin import Say
from privtune.device.client.sources import Data, columns_of, sources_of

if TYPE_CHECKING:
    from privtune.device.data.source import DataSource
    from privtune.device.inference.evaluate import Evaluation
    from privtune.device.inference.generate import Generated
    from privtune.device.inference.generation.prompt_builder import Prompt
    from privtune.device.inference.predict import Prediction
    from privtune.device.session.run_settings import RunSettings

Text = str | tuple[str, str]
Conversation = Sequence[Mapping[str, Any]]


class JobModel:
    """The newest state of a job that this device has trained. Texts take the private path of training.

    Every call raises JobNotFound where this device does not hold the job, JobConflict where it has no checkpoint yet,
    PolicyRefused where the budget does not allow the release, and CloudUnreachable.
    """

    def __init__(self, job_id: str, access: Access, say: Say) -> None:
        self.job_id, self._access, self._say = job_id, access, say

    def __repr__(self) -> str:
        return f"JobModel({self.job_id!r})"

    @overload
    def predict(self, texts: Text, *, batch_size: int = 32, another_noise: bool = False) -> Prediction: ...
    @overload
    def predict(
        self, texts: list[Text] | list[str], *, batch_size: int = 32, another_noise: bool = False
    ) -> list[Prediction]: ...
    def predict(
        self, texts: Text | Sequence[Text], *, batch_size: int = 32, another_noise: bool = False
    ) -> Prediction | list[Prediction]:
        """Classify a text, or texts in the order given. A text is released once, however often it is asked for.

        Args:
            texts: one text, a tuple of two for a pair, or a list of either.
            batch_size: texts in a message to the cloud.
            another_noise: allow another noise distribution than these texts had before.

        Returns a `Prediction` (label, probabilities) for one text, a list of them for a list.
        """
        from privtune.device.inference.predict import predict

        given, one = _as_list(texts, (str, tuple))
        found = predict(self.job_id, given, self._settings(another_noise), batch_size=batch_size, say=self._say)
        return found[0] if one else found

    @overload
    def generate(self, prompts: str | Conversation, *, another_noise: bool = False, **sampling: Any) -> Generated: ...
    @overload
    def generate(
        self, prompts: list[str] | Sequence[Conversation], *, another_noise: bool = False, **sampling: Any
    ) -> list[Generated]: ...
    def generate(self, prompts: Any, *, another_noise: bool = False, **sampling: Any) -> Generated | list[Generated]:
        """Continue or answer a prompt, or prompts in the order given. The cloud knows the answers: docs/inference.md.

        Args:
            prompts: a text, a conversation (a list of dicts with role and content), or a list of either.
            another_noise: as of `predict`.
            sampling: max_new_tokens (256), temperature (0), top_p, top_k, seed, stop (a tuple of texts).

        Returns a `Generated` (text, tokens, prompt_tokens, finish) for one prompt, a list of them for a list.
        """
        from privtune.device.inference.generate import generate_texts
        from privtune.device.inference.generation.sampling import Sampling
        from privtune.shared.errors import InvalidInput

        try:
            settled = Sampling(**sampling)
        except TypeError as error:
            raise InvalidInput(f"generate: {error}".replace("Sampling.__init__() ", "")) from None
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], Mapping))
        asked = [_prompt(one) for one in ([prompts] if single else prompts)]
        found = generate_texts(self.job_id, asked, self._settings(another_noise), sampling=settled, say=self._say)
        return found[0] if single else found

    def evaluate(
        self,
        data: Data | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        limit: int | None = None,
        generate: int = 0,
        another_noise: bool = False,
    ) -> Evaluation:
        """Score the model on records that it has not seen.

        Args:
            data: as for `Client.finetune`; None: the held-out records that the job was begun with.
            columns: as for `Client.finetune`.
            limit: at most this many records, drawn at random.
            generate: also answer this many prompts with a language model, scored by ROUGE and BLEU.
            another_noise: as of `predict`.

        Raises InvalidInput where there are no held-out records, or they were in memory.
        """
        from privtune.device.inference.evaluate import evaluate

        if data is None:
            source = held_out_of(self.job_id, self._access.folder, limit)
        else:
            source = sources_of(data, limit=limit, columns=columns_of(columns))[0]
        return evaluate(self.job_id, source, self._settings(another_noise), generate=generate, say=self._say)

    def export(
        self,
        folder: str | Path,
        *,
        format: Literal["peft", "merged", "gguf"] = "peft",
        local_model: str | Path | None = None,
        **options: Any,
    ) -> Path:
        """Write what was trained for other tools: a PEFT adapter, a whole model, or a GGUF file (docs/export.md).

        Args:
            folder: a new folder.
            format: peft, merged or gguf; the last two need `local_model`.
            local_model: the owner's own copy of the base model.
            options: further fields of `ExportOptions`: dtype, base_name, label_names, metrics.
        """
        from privtune.device.client.sources import absolute
        from privtune.device.export.export_job import ExportOptions, export_job

        settings = replace(self._access, local_model=absolute(local_model)).settings()
        wanted = ExportOptions(format=format, **options)
        return export_job(self.job_id, Path(folder).expanduser().absolute(), settings, wanted, say=self._say)

    def _settings(self, another_noise: bool) -> RunSettings:
        return replace(self._access, another_noise=another_noise).settings()


def held_out_of(job_id: str, home: Path, limit: int | None = None) -> DataSource:
    """The held-out records that a job was begun with. Raises InvalidInput where there are none."""
    from privtune.device.home.run_request import RunRequest
    from privtune.shared.errors import InvalidInput

    request = RunRequest.load(home, job_id)
    if request is None or request.validation is None:
        raise InvalidInput("This job has no held-out records here: name some with --data.", param="data")
    # A held-out part is drawn after the limit on the whole: a smaller limit would draw other records.
    if limit is not None and request.validation.part == "held-out":
        raise InvalidInput("--limit needs --data here: the job's held-out part is fixed.", param="limit")
    return request.validation if limit is None else replace(request.validation, limit=limit)


def _as_list(given: Any, single: tuple[type, ...]) -> tuple[list[Any], bool]:
    one = isinstance(given, single)
    return ([given] if one else list(given)), one


def _prompt(given: Any) -> Prompt:
    from privtune.device.data.messages import parse_messages

    return given if isinstance(given, str) else parse_messages(given, "a prompt")

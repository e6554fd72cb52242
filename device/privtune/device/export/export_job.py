"""From a finished job to a folder: the cloud's adapter with the head that never left this device, or a merged model.

fetch adapter -> load the base? -> PEFT folder -> (merge into the base -> safetensors or GGUF) -> card -> manifest
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from privtune.device.export.base_name import BaseName, chosen_name, known_name
from privtune.device.export.export_folder import CARD, MADE_BY, check_room, check_target, new_folder
from privtune.device.export.gguf_file import write_gguf
from privtune.device.export.merge import merge_into
from privtune.device.export.model_card import CardFacts, gguf_name, training_claims, write_card
from privtune.device.export.reader_files import carry_form, end_turns, suit_older_readers, turn_end
from privtune.device.export.trained_parts import TrainedParts, device_parts, whole_model
from privtune.device.home.job_folder import JobFolder, JobState
from privtune.device.link.download import artifact_of, fetch_folder
from privtune.device.link.rpc import Link
from privtune.device.session.run_settings import RunSettings
from privtune.shared.at_rest import read_bytes, read_text, write_bytes
from privtune.shared.errors import (
    DataInvalid,
    InvalidInput,
    JobConflict,
    ModelUnsupported,
    NonFinite,
)
from privtune.shared.job_spec import Task
from privtune.shared.manifest import read_manifest, write_manifest
from privtune.shared.modeling.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FULL_FACTS,
    FULL_WEIGHTS,
    add_head_to_adapter,
)
from privtune.shared.modeling.architectures import is_encoder
from privtune.shared.modeling.hf_calls import quiet
from privtune.split.v1 import split_pb2 as pb

Format = Literal["peft", "merged", "gguf"]
Dtype = Literal["fp32", "fp16", "bf16"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHARD = "5GB"
# Only these files of what the cloud sends get into an export.
_FROM_CLOUD = (ADAPTER_WEIGHTS, ADAPTER_CONFIG, FULL_WEIGHTS, FULL_FACTS)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to write.

    format: the adapter alone, or a merged model as safetensors or GGUF.
    dtype: type of merged weights; below fp32, answers differ in the last digits.
    label_names: write the names of the classes, which are words of the owner's data.
    metrics: put metrics on the owner's data on the card.
    base_name: public name of the base model, or for peft a folder here; None: what is known of it.
    """

    format: Format = "peft"
    dtype: Dtype = "fp32"
    label_names: bool = True
    metrics: bool = False
    base_name: str | None = None

    def __post_init__(self) -> None:
        if self.format == "peft" and self.dtype != "fp32":
            raise InvalidInput("--dtype is for --format merged and gguf; an adapter stays in fp32.", param="dtype")
        self.chosen_name()

    def chosen_name(self) -> BaseName | None:
        """How the owner calls the base, if at all."""
        return None if self.base_name is None else chosen_name(self.base_name, folder=self.format == "peft")


def export_job(
    job_id: str,
    target: Path,
    settings: RunSettings,
    options: ExportOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write what plain transformers (and peft) load, head included; `target` appears whole or not at all.

    `say` is called before slow work, and with what the owner should know of the result.

    Raises:
        JobNotFound: this device does not hold the job.
        JobConflict: the job is not finished.
        InvalidInput: the target is in use, or the base model is needed and not given.
        VersionMismatch: the base model is another one.
        ModelUnsupported: the model can't be merged, or not be written in that format.
        StorageFull: the disk is full.
    """
    options = options or ExportOptions()
    folder = JobFolder(settings.home, job_id)
    state = folder.load()
    check_target(target)
    if state.final_step is None:
        raise JobConflict("this job is not finished; run `privtune finetune --job` to resume it, then export")
    local = settings.local_model or state.local_model
    _check_possible(state, options, local)
    with Link(settings.endpoint) as link:
        adapter = fetch_folder(link, artifact_of(pb.ARTIFACT_KIND_ADAPTER, job_id), folder.path / "adapter")
        here = device_parts(link, job_id, state, settings.home, local) if options.format == "peft" else None
    base_sha256 = _base_sha256(adapter)
    parts = here or whole_model(state, str(local), base_sha256, say, gguf=options.format == "gguf")
    base = options.chosen_name() or known_name(local, adapter, state.spec.model)
    adapter = parts.load_trained(state, folder, adapter)
    facts = CardFacts(
        spec=state.spec,
        format=options.format,
        dtype=options.dtype,
        classes=len(state.label_names),
        named=options.label_names,
        longest=state.spec.train.longest(parts.max_positions),
        base=base,
        base_sha256=base_sha256,
        training=training_claims(settings.home, job_id),
        metrics=_metrics(folder) if options.metrics else None,
    )
    with new_folder(target) as scratch:
        _write(scratch, adapter, parts, state, facts, options, say)
        write_card(scratch / CARD, facts)
        write_manifest(scratch, made_by=MADE_BY, format=options.format, task=state.spec.task)
    if options.format == "peft" and not base.loads:
        say(f"the adapter calls its base {base.name!r}, as this cloud does; --base-name names one that others load")
    return target


def _check_possible(state: JobState, options: ExportOptions, local: str | None) -> None:
    """Refuse early what would fail after a long download."""
    if state.spec.tail and state.spec.skip != "none":
        raise ModelUnsupported(
            "This job's tail also reads the clean vectors of this device (--skip), for which a plain model has no "
            "place: use it here (predict, generate, serve), or train one with --skip none to export it."
        )
    if options.format == "gguf" and state.spec.task != "causal-lm":
        raise ModelUnsupported(
            "GGUF files hold language models, and this job is a classifier. Possible: --format merged or peft."
        )
    if options.format != "peft" and local is None:
        raise InvalidInput(
            f"--format {options.format} needs the whole base model, and this device has only its bottom. Get the model "
            f"that the cloud calls {state.spec.model!r} and give it: --local-model FOLDER, FILE.gguf or owner/model.",
            param="local_model",
        )


def _base_sha256(adapter: Path) -> str | None:
    found = str(read_manifest(adapter).get("base_sha256"))
    return found if _SHA256.fullmatch(found) else None


def _metrics(folder: JobFolder) -> dict[str, float]:
    try:
        report = json.loads(read_text(folder.path / "report.json"))
        return {str(name): float(value) for name, value in report["metrics"].items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataInvalid(f"{folder.path / 'report.json'} can't be read; export without --with-metrics") from error


def _write(
    scratch: Path,
    adapter: Path,
    parts: TrainedParts,
    state: JobState,
    facts: CardFacts,
    options: ExportOptions,
    say: Callable[[str], None],
) -> None:
    """Write the files of the chosen format to `scratch`; a merged model goes through a temporary PEFT folder."""
    model, dtype = parts.model, DTYPES[options.dtype]
    if model is not None:
        check_room(scratch, sum(value.numel() for value in model.parameters()) * dtype.itemsize)
    names = state.label_names if options.label_names else ()
    peft = scratch / "peft" if model is not None else scratch
    peft.mkdir(exist_ok=True)
    for name in _FROM_CLOUD:
        if (adapter / name).exists():
            write_bytes(peft / name, read_bytes(adapter / name))
    carry_form(parts.tokenizer, state.prompt)
    add_head_to_adapter(peft, parts.head, task=state.spec.task, label_names=names, base_model=facts.base.name)
    end = turn_end(parts.tokenizer, state.prompt)
    if model is None:
        parts.tokenizer.save_pretrained(scratch)
        if end is not None:
            end_turns(GenerationConfig(eos_token_id=sorted(parts.end_ids)), end).save_pretrained(scratch)
        suit_older_readers(scratch)
        return
    say("merging the adapter and writing the model")
    merge_into(model, peft)
    shutil.rmtree(peft)
    if options.format == "gguf":
        file = scratch / gguf_name(options.dtype)
        write_gguf(
            file,
            model,
            parts.tokenizer,
            options.dtype,
            name=facts.base.name,
            source=parts.source,
            template=state.prompt.template if state.prompt else None,
            turn_end=end,
        )
    else:
        if end is not None:
            end_turns(model.generation_config, end)
        _save_merged(scratch, model.to(dtype), parts.tokenizer, state.spec.task, names)


def _save_merged(folder: Path, model: Any, tokenizer: Any, task: Task, names: tuple[str, ...]) -> None:
    for name, value in model.named_parameters():
        if not value.isfinite().all():
            raise NonFinite(f"{name} has values that {value.dtype} can't hold; use --dtype bf16 or fp32.")
    config = model.config
    config._name_or_path = ""  # a path of this machine
    if names:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    if task == "classification" and not is_encoder(config.model_type):
        config.pad_token_id = tokenizer.pad_token_id  # a decoder's classifier reads the last token other than this
    with quiet():
        model.save_pretrained(folder, max_shard_size=SHARD)
        tokenizer.save_pretrained(folder)
    suit_older_readers(folder)

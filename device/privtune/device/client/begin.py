"""From an owner's order to a job that is ready to train: `privtune finetune` and `Client.finetune` both begin here."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from privtune.device.client.access import Access
from privtune.device.client.job_options import build_spec, default_of
from privtune.device.client.sources import absolute
from privtune.device.data.source import DataSource
from privtune.device.protections.protection import DEFAULT, protection

if TYPE_CHECKING:
    from privtune.device.home.policy import AuditRule
    from privtune.device.home.run_request import RunRequest
    from privtune.device.session.run_settings import RunSettings
    from privtune.device.training.job import RunResult
    from privtune.device.training.progress import TrainingProgress
    from privtune.device.training.submit import Consent
    from privtune.shared.job_spec import JobSpec

Say = Callable[[str], None]
Sources = tuple[DataSource, DataSource | None]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What an owner asks for, beside the data.

    given: job options by name (`privtune.device.client.job_options`); those left out have the protection's settings.
    params: of the mechanism, by name.
    protect: a protection by name; None: the default one.
    name: of the data set that the cloud sees; None: a random one.
    audit: attack the data here first, and refuse the job if too much can be read.
    spot_checks: share of the cloud's work that is computed here as well.
    record_frames: keep all that is sent and received.
    share_figures: the cloud may know loss and figures.
    own_loop: it trains in a loop of the owner's.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    protect: str | None = None
    name: str | None = None
    audit: bool = False
    spot_checks: float = 0.0
    record_frames: bool = False
    share_figures: bool = False
    own_loop: bool = False

    def consent(self, access: Access) -> Consent:
        """What the owner allows explicitly. Raises InvalidInput for an unknown protection."""
        from privtune.device.training.submit import Consent

        protect = protection(self.protect or DEFAULT).name
        return Consent(
            protection=protect,
            shared_labels=self.given.get("labels", default_of("labels")) == "shared",
            another_noise=access.another_noise or protect == "none",
        )

    @property
    def rule(self) -> AuditRule | None:
        """The limits of the audit, if there is to be one."""
        from privtune.device.home.policy import AuditRule

        return AuditRule() if self.audit else None


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A job that the cloud knows, and how this device runs it."""

    job_id: str
    request: RunRequest
    settings: RunSettings

    def train(self, progress: TrainingProgress, stop: threading.Event) -> RunResult:
        """Train it to its end; see `privtune.device.training.submit.train`."""
        from privtune.device.training.submit import train

        return train(self.job_id, self.request, self.settings, progress, stop)


def begin(order: Order, access: Access, sources: Sources, say: Say, *, new: bool = False) -> Begun:
    """Check all that can be checked here, say what the cloud will be able to read, and submit the job.

    An unfinished job of the same data and settings is resumed instead.

    Args:
        order: what is asked for; it names a model.
        access: to the cloud; the home is open.
        sources: training and held-out records.
        say: gets lines for the owner.
        new: start a new job even if there is an unfinished one.

    Raises InvalidInput, DataInvalid, PolicyRefused before anything is sent; then as the cloud's calls.
    """
    from privtune.device.protections.announce import announcement
    from privtune.device.training.own_loop import check_own_loop
    from privtune.device.training.submit import check_request, submit

    consent, blocks = order.consent(access), _blocks(order, access)
    request = replace(
        _request(order, access, sources, blocks),
        spot_checks=order.spot_checks,
        share_figures=order.share_figures,
        own_loop=order.own_loop,
    )
    checked = check_request(request, access.folder, consent, say, order.rule)
    if order.own_loop:
        check_own_loop(checked.spec)
    with access.control() as control:
        settings = access.settings(control)
        control.check_model(checked.spec.model)  # and the key, before anything is said of a job
        for line in announcement(checked.spec, consent.protection, blocks):
            say(line)
        job_id, request = submit(checked, access.folder, control, say, new=new)
    return _begun(job_id, request, settings, order)


def begin_again(job_id: str, order: Order, access: Access, sources: Callable[[], Sources] | None, say: Say) -> Begun:
    """The same for a job that exists; its own settings hold. sources: None where the owner named no data.

    Raises as `privtune.device.training.submit.resume`.
    """
    from privtune.device.protections.readable import what_the_cloud_reads
    from privtune.device.training.submit import resume

    consent = order.consent(access)
    with access.control() as control:
        settings = access.settings(control)
        request = resume(job_id, access.folder, control, sources, absolute(access.local_model), consent, say)
        for line in what_the_cloud_reads(request.spec):
            say(line)
    return _begun(job_id, request, settings, order)


def _begun(job_id: str, request: RunRequest, settings: RunSettings, order: Order) -> Begun:
    settings = replace(settings, record_frames=order.record_frames, audit=order.rule)
    return Begun(job_id=job_id, request=request, settings=settings)


def _blocks(order: Order, access: Access) -> int | None:
    """How many blocks the model has, where the protection depends on it: the cloud knows."""
    if not protection(order.protect or DEFAULT).half or "cut" in order.given:
        return None
    with access.control() as control:
        return control.blocks(order.given["model"])


def _request(order: Order, access: Access, sources: Sources, blocks: int | None) -> RunRequest:
    """What the order asks for; the number of labels is a guess until the data are read."""
    from privtune.device.home.run_request import RunRequest
    from privtune.device.link.teaching_calls import AUTO, newest_for
    from privtune.shared.job_spec import TEACHING_ID

    train, validation = sources

    def described(given: Mapping[str, Any]) -> JobSpec:
        return build_spec(
            given,
            order.params,
            protect=order.protect or DEFAULT,
            blocks=blocks,
            name=order.name,
            validated=validation is not None,
            num_labels=2 if given.get("labels") == "shared" else None,
        )

    given = dict(order.given)
    taught = given.get("taught")
    if taught is not None and not re.fullmatch(TEACHING_ID, taught):
        del given["taught"]
        with access.control() as control:
            given["taught"] = newest_for(control, described(given), None if taught == AUTO else taught)
    return RunRequest(
        cloud="",
        spec=described(given),
        train=train,
        validation=validation,
        local_model=absolute(access.local_model),
    )

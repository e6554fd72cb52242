"""The control plane's teachings: blocks for this device, taught on public text. No record is needed or named for it."""

from __future__ import annotations

from privtune.device.link.rest import ControlPlane
from privtune.device.link.rest_client import Json
from privtune.shared.errors import InvalidInput, JobNotFound, VersionMismatch
from privtune.shared.job_spec import JobSpec
from privtune.shared.teaching_spec import TeachingSpec

_TEACHINGS = "/v1/privtune/teachings"
AUTO = "auto"


def create_teaching(control: ControlPlane, spec: TeachingSpec) -> Json:
    """Ask the cloud to teach; the same teaching, unfinished or still good for use, is answered as it is."""
    return _checked(control, control.call("POST", _TEACHINGS, json=spec.model_dump(mode="json")))


def get_teaching(control: ControlPlane, teaching_id: str) -> Json:
    """One teaching as the cloud shows it."""
    return _checked(control, control.call("GET", _path(teaching_id)))


def list_teachings(control: ControlPlane, limit: int | None = None) -> list[Json]:
    """Teachings of this key, newest first, at most `limit`."""
    found: list[Json] = []
    for item in control.pages(_TEACHINGS, {}):
        found.append(_checked(control, item))
        if limit is not None and len(found) >= limit:
            break
    return found


def cancel_teaching(control: ControlPlane, teaching_id: str) -> Json:
    """End it after the present step."""
    return _checked(control, control.call("POST", f"{_path(teaching_id)}/cancel"))


def delete_teaching(control: ControlPlane, teaching_id: str) -> None:
    """Have the cloud forget an ended one, and its package if no other teaching has the same."""
    control.call("DELETE", _path(teaching_id))


def list_corpora(control: ControlPlane) -> list[str]:
    """Names of the public texts that the cloud has."""
    return [str(item.get("id")) for item in control.pages("/v1/privtune/corpora", {})]


def newest_for(control: ControlPlane, job: JobSpec, corpus: str | None = None) -> str:
    """The id of the newest teaching whose blocks fit a job, by today's model. Raises JobNotFound without one.

    corpus: only teachings with this text.
    """
    wanted = {name: getattr(job, name) for name in ("model", "task", "cut", "tail")}
    wanted |= {} if corpus is None else {"corpus": corpus}
    for teaching in list_teachings(control):
        spec = teaching.get("spec")
        if teaching.get("current") is not True or not isinstance(spec, dict):
            continue
        if all(spec.get(name) == value for name, value in wanted.items()):
            return str(teaching["id"])
    on = "" if corpus is None else f" on {corpus[:80]}"
    raise JobNotFound(
        f"No teaching{on} has taught the first {job.cut} and last {job.tail} blocks of {job.model}: `privtune "
        "teachings start` begins one.",
        param="taught",
    )


def _path(teaching_id: str) -> str:
    if not teaching_id.removeprefix("teach-").isalnum() or not teaching_id.isascii():
        raise InvalidInput(f"{teaching_id[:80]!r} is not the id of a teaching; `privtune teachings list` shows yours.")
    return f"{_TEACHINGS}/{teaching_id}"


def _checked(control: ControlPlane, teaching: Json) -> Json:
    if not isinstance(teaching.get("id"), str) or not isinstance(teaching.get("status"), str):
        raise VersionMismatch(
            f"{control.url} does not answer like a PrivTune cloud; check the address and its version."
        )
    _path(teaching["id"])
    return teaching

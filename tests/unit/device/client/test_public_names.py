"""What `from privtune.device import ...` gives: each name documented and typed, down to its methods."""

import inspect
from pathlib import Path

import pytest

from privtune import device
from privtune.device import AsyncClient, AsyncFineTuneJob, AsyncJobModel, Client, FineTuneJob, JobModel

TWINS = [(Client, AsyncClient), (FineTuneJob, AsyncFineTuneJob), (JobModel, AsyncJobModel)]


@pytest.mark.parametrize("name", device.__all__)
def test_a_public_name_teaches(name):
    found = getattr(device, name)
    assert inspect.getdoc(found)
    for member, value in vars(found).items():
        if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod)):
            assert inspect.getdoc(value), f"{name}.{member}"
    assert name in dir(device)


def test_types_are_for_users_too():
    assert (Path(device.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError):
        device.Nothing  # noqa: B018


@pytest.mark.parametrize(("one", "twin"), TWINS)
def test_a_twin_has_every_call(one, twin):
    left_out = {"remote_top"}  # a module's passes can't be awaited
    calls = {name for name in vars(one) if not name.startswith("_")}
    assert calls - left_out <= {name for name in vars(twin) if not name.startswith("_")} | {"job_id"}

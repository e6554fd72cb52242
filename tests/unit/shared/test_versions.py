"""Two sides agree on the newest protocol that both speak, or say which of them to upgrade."""

import pytest

from privtune.shared.errors import VersionMismatch
from privtune.shared.versions import OURS, Spoken, agree, heard


def spoken(oldest, newest, version="1.0"):
    return Spoken(oldest=oldest, newest=newest, version=version)


@pytest.mark.parametrize(
    ("device", "cloud", "agreed"),
    [((4, 4), (4, 4), 4), ((4, 4), (4, 5), 4), ((4, 5), (4, 4), 4), ((4, 5), (5, 6), 5), ((4, 6), (4, 6), 6)],
)
def test_versions_one_apart_agree_on_the_newest_that_both_speak(device, cloud, agreed):
    assert agree(device=spoken(*device), cloud=spoken(*cloud)) == agreed


@pytest.mark.parametrize(
    ("device", "cloud", "older"),
    [((4, 4), (5, 6), "the device"), ((5, 6), (4, 4), "the cloud"), ((4, 4), (0, 0), "the cloud")],
)
def test_others_are_told_both_versions_and_which_to_upgrade(device, cloud, older):
    with pytest.raises(VersionMismatch) as caught:
        agree(device=spoken(*device, "1.0"), cloud=spoken(*cloud, "2.0"))
    for said in (str(spoken(*device, "1.0")), str(spoken(*cloud, "2.0")), f"Upgrade {older}."):
        assert said in caught.value.message


def test_what_another_side_says_is_not_believed_blindly():
    assert heard(None, 4, "0.1.0") == spoken(4, 4, "0.1.0"), "from before there was a range"
    assert heard(0, 4, None) == spoken(4, 4, "unknown"), "a protobuf without the field"
    assert heard(9, 4, "x" * 99) == spoken(4, 4, "x" * 40)
    assert heard("1", "4", []) == spoken(0, 0, "unknown")


def test_this_version_speaks_the_one_before():
    assert 0 < OURS.newest - 1 <= OURS.oldest <= OURS.newest

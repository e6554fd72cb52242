"""What the device keeps of its owner goes through `privtune.shared.at_rest`, so that all of it can be encrypted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("account", "agent", "home", "link", "model", "release", "session", "training", "audit/jobs", "noise/tables")
DIRECT = re.compile(
    r"\.(read_text|read_bytes|write_text|write_bytes)\(|\bos\.open\(|\.open\(|\bopen\(|\b(load_file|save_file|safe_open)\("
)
# Of other files: what encrypts, exports of a home, the YAML of its owner, certificates, the public model, and RPCs.
OTHERS = {
    "account/home_archive.py",
    "account/transport.py",
    "home/encryption/conversion.py",
    "home/encryption/sealed_files.py",
    "home/encryption/vault.py",
    "home/encryption/vault_key.py",
    "home/policy_file.py",
    "link/rpc.py",
    "link/trust.py",
    "model/pinned_bottom.py",
    "training/job.py",
    "training/own_loop.py",
}


@pytest.mark.parametrize("room", ROOMS)
def test_no_private_file_is_read_or_written_directly(room):
    device = ROOT / "device/privtune/device"
    direct = {
        path.relative_to(device).as_posix(): found
        for path in sorted((device / room).rglob("*.py"))
        if (found := [match[0] for match in DIRECT.finditer(path.read_text(encoding="utf-8"))])
    }
    assert {name: found for name, found in direct.items() if name not in OTHERS} == {}

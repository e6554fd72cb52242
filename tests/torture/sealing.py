"""Encrypts a home under a passphrase that is in the environment, and cheap to try: it is for a disk of these tests."""

from __future__ import annotations

from pathlib import Path

from privtune.device.home.encryption import vault_key
from privtune.device.home.encryption.conversion import encrypt_home, unlock
from privtune.shared.files import make_folder

PASSPHRASE = {vault_key.PASSPHRASE_VARIABLE: "of a home without power"}


def encrypt(home: Path) -> None:
    """Encrypt, or complete that, as `privtune home encrypt --key passphrase`; this process has the key then."""
    vault_key._SCRYPT["n"] = 16
    make_folder(home)
    encrypt_home(home, "passphrase", next(iter(PASSPHRASE.values())))
    unlock(home)

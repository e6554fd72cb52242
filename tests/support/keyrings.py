"""A keyring in memory, instead of the one of this machine."""

from __future__ import annotations

import keyring
import pytest
from keyring.backend import KeyringBackend


class Keyring(KeyringBackend):
    """Passwords by service and name."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self.kept.pop((service, username), None)


def use_keyring(patch: pytest.MonkeyPatch, kept: KeyringBackend | None = None) -> KeyringBackend:
    """Use a new keyring, or this one, until the patch ends."""
    used = kept or Keyring()
    patch.setattr(keyring.core, "_keyring_backend", used)
    return used

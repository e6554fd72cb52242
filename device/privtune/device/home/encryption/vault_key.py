"""The key of an encrypted home, wrapped: `home/vault.json`.

    {"format": 1, "id": ..., "state": ..., "kept": [{"by": "keyring" | "passphrase", ..., "nonce": ..., "key": ...}]}

The key is drawn once and never changes; each entry of `kept` has it encrypted (ChaCha20-Poly1305) under a key from the
operating system's keyring, which the login unlocks, or under one that scrypt makes of a passphrase, where there is no
keyring. Binary values are base64.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from privtune.shared.at_rest import MARK
from privtune.shared.errors import DataInvalid, HomeLocked, InvalidInput
from privtune.shared.files import replacing_file

PASSPHRASE_VARIABLE = "PRIVTUNE_HOME_PASSPHRASE"
State = Literal["encrypting", "encrypted", "decrypting"]
KeptBy = Literal["keyring", "passphrase"]
SHORTEST = 12  # characters of a passphrase
_SERVICE = "privtune"
_SCRYPT = {"n": 1 << 17, "r": 8, "p": 1}  # 128 MiB, a third of a second


@dataclass(frozen=True, kw_only=True)
class WrappedKey:
    """What `vault.json` holds.

    id: names the vault in the keyring.
    state: of the home's files.
    kept: by whom the key is kept, and wrapped how.
    """

    id: str
    state: State
    kept: tuple[Mapping[str, Any], ...]
    format: int = 1

    @classmethod
    def new(cls) -> WrappedKey:
        """Of a home that is being encrypted; nobody keeps the key yet."""
        return cls(id=secrets.token_hex(16), state="encrypting", kept=())

    @classmethod
    def parse(cls, text: str | bytes) -> WrappedKey:
        """Of the file's text. Raises ValueError, TypeError, KeyError."""
        facts = json.loads(text)
        return cls(**facts | {"kept": tuple(facts["kept"])})

    def text(self) -> str:
        """What the file holds, in one line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def load(cls, home: Path) -> WrappedKey | None:
        """Of this home; None for one in clear. Raises DataInvalid for a damaged file."""
        file = home / MARK
        try:
            return cls.parse(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataInvalid(f"{file} can't be read; restore it from a backup: without it the home is lost") from error

    def save(self, home: Path) -> None:
        """Replace the file. Raises OSError."""
        with replacing_file(home / MARK) as scratch:
            scratch.touch(0o600)
            scratch.write_text(self.text())

    @property
    def by(self) -> str:
        """Who keeps the key, for people."""
        return " and ".join(str(one["by"]) for one in self.kept)

    def wrapped(self, key: bytes, by: KeptBy, passphrase: str = "") -> WrappedKey:
        """The same vault, whose key is kept in this way alone. Raises InvalidInput without a keyring."""
        if by == "keyring":
            outer, facts = secrets.token_bytes(32), {}
            _into_keyring(self.id, outer)
        else:
            salt = secrets.token_bytes(16)
            outer, facts = _of_passphrase(passphrase, salt, **_SCRYPT), {"salt": _text(salt), **_SCRYPT}
        nonce = secrets.token_bytes(12)
        sealed = ChaCha20Poly1305(outer).encrypt(nonce, key, self._about(by))
        kept = {"by": by, **facts, "nonce": _text(nonce), "key": _text(sealed)}
        return replace(self, kept=(kept,))

    def key(self, passphrase: str | None = None) -> bytes:
        """The home's key. passphrase: asked for at the terminal, or taken from the environment, unless given.

        Raises HomeLocked where it can't be had.
        """
        for kept in self.kept:
            if kept["by"] == "keyring":
                outer = _from_keyring(self.id)
            else:
                outer = _of_passphrase(passphrase or known_passphrase() or _asked("Passphrase of this home"), **kept)
            with suppress(InvalidTag):
                nonce, sealed = _bytes(kept["nonce"]), _bytes(kept["key"])
                return ChaCha20Poly1305(outer).decrypt(nonce, sealed, self._about(kept["by"]))
            raise HomeLocked(f"The {kept['by']} does not open this home.")
        raise HomeLocked("Nobody keeps the key of this home; restore it from a backup.")

    def forget(self) -> None:
        """Remove the key from the keyring, if it is there: the home is in clear, or its passphrase is enough."""
        import keyring
        from keyring.errors import KeyringError

        with suppress(KeyringError):
            keyring.delete_password(_SERVICE, self.id)

    def _about(self, by: str) -> bytes:
        return f"privtune vault 1 {self.id} {by}".encode()


def known_passphrase() -> str | None:
    """The one in the environment."""
    return os.environ.get(PASSPHRASE_VARIABLE) or None


def new_passphrase() -> str:
    """The one in the environment, or one that is typed twice. Raises InvalidInput for a short one."""
    found = known_passphrase()
    if found is None:
        found = _asked("New passphrase")
        if found != _asked("Once more"):
            raise InvalidInput("The two passphrases differ; nothing was changed.")
    if len(found) < SHORTEST:
        raise InvalidInput(f"A passphrase needs {SHORTEST} characters or more; nothing was changed.")
    return found


def has_keyring() -> bool:
    """Whether this machine has a keyring that can be used."""
    import keyring

    return keyring.get_keyring().priority > 0


def _asked(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise HomeLocked(f"This home needs its passphrase: set {PASSPHRASE_VARIABLE}, or run at a terminal.")
    import getpass

    return getpass.getpass(f"{prompt}: ")


def _of_passphrase(passphrase: str, salt: bytes | str, n: int, r: int, p: int, **_: object) -> bytes:
    salt = _bytes(salt) if isinstance(salt, str) else salt
    return Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase.encode())


def _into_keyring(vault_id: str, outer: bytes) -> None:
    import keyring
    from keyring.errors import KeyringError

    try:
        keyring.set_password(_SERVICE, vault_id, _text(outer))
    except KeyringError as error:
        raise InvalidInput(
            f"This machine has no keyring that can be used ({error}); use --key passphrase.", param="key"
        ) from error


def _from_keyring(vault_id: str) -> bytes:
    import keyring
    from keyring.errors import KeyringError

    try:
        found = keyring.get_password(_SERVICE, vault_id)
    except KeyringError as error:
        raise HomeLocked(f"The keyring can't be read ({error}); unlock it, as by logging in.") from error
    if found is None:
        raise HomeLocked(
            "The key of this home is not in this machine's keyring: use the account that encrypted it, or an export "
            "or a backup, which have a passphrase."
        )
    return _bytes(found)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.b64decode(value)

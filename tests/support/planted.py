"""Records with names, numbers and addresses of made-up people, models that read bytes, and what frames spell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from privtune.device.account.run_account import TRANSCRIPT
from privtune.device.account.verify import kept_frame, read_run, runs_of
from privtune.device.data.source import DataSource
from privtune.device.session.run_settings import RunSettings
from privtune.shared.codec import decode
from privtune.shared.modeling.bottom_package import BottomPackage
from privtune.shared.wire import FORWARD, FrameReader, Message
from privtune.split.v1.split_pb2 import ForwardHeader
from tests.support.chats import CHATML, byte_tokenizer
from tests.support.tiny_models import tiny_classifier, tiny_lm
from tests.support.world import World

PEOPLE = (
    ("Ottilie Brandvold", "+49 171 5551234", "o.brandvold@nordlicht.example"),
    ("Zbigniew Okonkwo", "+44 20 7946 0958", "zbig@okonkwo.example"),
    ("Marisol Etxeberria", "+1 415 555 0132", "marisol77@etxe.example"),
    ("Thaddeus Kvaran", "+47 22 85 50 50", "kvaran.t@fjord.example"),
)
OWN_TERM = "green window"  # lower case and common words: only the owner's list can find it
CARRIERS = (
    "My name is {name} and the soup was cold, call me at {phone}.",
    "Please write to {mail} because {name} wants the money back for {term}.",
    "Yesterday {name} said that the room was lovely, the number is {phone}.",
)
WORDS = ("soup was cold", "money back", "room was lovely")  # of the carriers, which stay in clear
MAX_LENGTH = 160


def planted() -> list[str]:
    """Every word and number that must never leave."""
    parts = [part for name, phone, mail in PEOPLE for part in (*name.split(), phone, mail, mail.split("@")[0])]
    return [*parts, OWN_TERM]


def texts() -> list[str]:
    """Each carrier with each of the people."""
    return [
        carrier.format(name=name, phone=phone, mail=mail, term=OWN_TERM)
        for name, phone, mail in PEOPLE
        for carrier in CARRIERS
    ]


def planted_world(folder: Path, cloud_type: type) -> World:
    """A cloud with a classifier `enc` and a decoder `chatty`, both of bytes; labelled records, and a term file."""
    tokenizer = byte_tokenizer(CHATML)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    models = {"enc": folder / "models" / "enc", "chatty": folder / "models" / "chatty"}
    tiny_classifier("bert", num_labels=2, **sizes).save_pretrained(models["enc"])
    tiny_lm("llama", **sizes).save_pretrained(models["chatty"])
    for path in models.values():
        tokenizer.save_pretrained(path)
    cloud = cloud_type(folder / "cloud", models)
    terms = folder / "terms.txt"
    terms.write_text(f"\n{OWN_TERM}\n")
    return World(
        cloud=cloud,
        folder=folder,
        models=models,
        settings=RunSettings(
            grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=folder / "home", record_frames=True
        ),
        data=DataSource(path=str(_labelled(folder / "train.tsv", texts())), own_terms=str(terms)),
        validation=DataSource(path=str(_labelled(folder / "dev.tsv", [*reversed(texts())]))),
    )


def _labelled(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(["text\tlabel", *(f"{row}\t{place % 2}" for place, row in enumerate(rows))]) + "\n")
    return path


def conversations(world: World) -> DataSource:
    """The same people in conversations; each is named in question and answer."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": f"Dear {name}, the soup was cold indeed. We called {phone}."},
            ]
        }
        for text, (name, phone, _) in zip(texts(), [one for one in PEOPLE for _ in CARRIERS], strict=True)
    ]
    file = world.folder / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(file), own_terms=world.data.own_terms)


def messages(world: World, job_id: str) -> Iterator[Message]:
    """Every message of a job's recorded frames, of both directions and all runs."""
    for path in runs_of(world.settings.home / "jobs" / job_id / TRANSCRIPT):
        lines, _, broken = read_run(path, job_id)
        assert broken is None
        readers: dict[tuple[str, int], FrameReader] = {}
        for line in (one for one in lines if "at" in one):
            reader = readers.setdefault(
                (line["direction"], line["session"]), FrameReader(epoch=line["session"], max_tensor_bytes=1 << 30)
            )
            message = reader.feed(kept_frame(path, line))
            if message is not None:
                yield message


class Speller:
    """Reads messages as the cloud could: each row by its nearest prototype, at every position.

    It reads exactly where the cut is at the embedding and there is no noise.
    """

    def __init__(self, parts: BottomPackage, longest: int = 512) -> None:
        self._parts = parts
        ids_VT = torch.arange(len(parts.tokenizer))[:, None].expand(-1, longest)
        with torch.no_grad():
            self._prototypes_TVD = parts.bottom(ids_VT, torch.ones_like(ids_VT)).transpose(0, 1)

    def spell(self, message: Message) -> str:
        """What the rows of a message spell, a line for each text."""
        if message.kind == FORWARD and message.forward is not None:
            found = list(self._forward(message, message.forward))
        elif message.rows:
            rows_RD = torch.from_numpy(message.tensor())
            away_RV = torch.cdist(rows_RD, self._prototypes_TVD[0])
            pulled_RV = rows_RD @ self._prototypes_TVD[0].T  # a gradient names the word that it pulls to
            found = [away_RV.argmin(1).tolist(), pulled_RV.argmin(1).tolist()]
        else:
            return ""
        return "\n".join(self._parts.tokenizer.decode(ids) for ids in found)

    def _forward(self, message: Message, header: ForwardHeader) -> Iterator[list[int]]:
        rows_RD = torch.from_numpy(decode(bytes(message.payload), message.rows, self._parts.hidden_size, message.codec))
        starts = list(header.past) or [0] * len(header.lengths)
        inside = [
            (length, start) for length, start, now in zip(header.lengths, starts, header.inlined, strict=True) if now
        ]
        for rows_TD, (length, start) in zip(
            torch.split(rows_RD, [length for length, _ in inside]), inside, strict=True
        ):
            prototypes_TVD = self._prototypes_TVD[start : start + length]
            away_TV = torch.cdist(rows_TD[:, None], prototypes_TVD)[:, 0]
            yield away_TV.argmin(1).tolist()

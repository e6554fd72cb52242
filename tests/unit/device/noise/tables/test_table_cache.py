"""Tables on disk: complete, hash-checked, and refused for a model they were not made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privtune.device.noise.tables.table_cache import (
    adopt,
    cached,
    find_table,
    read_header,
    read_table,
    table_for,
    write_table,
)
from privtune.shared.errors import ArtifactCorrupt, InvalidInput
from privtune.shared.modeling.partition import Bottom
from tests.support.noise_contexts import tiny_context


def test_a_table_survives_the_disk(bottom: Bottom, tmp_path: Path) -> None:
    context = tiny_context(bottom)
    table = table_for(
        context, "clusters", "cut", {"a": torch.arange(6).view(2, 3), "b": torch.rand(4).half()}, made="x"
    )
    sha256 = write_table(table, tmp_path / "t.safetensors")
    again = read_table(tmp_path / "t.safetensors")
    assert again.sha256() == sha256 == table.sha256()
    assert torch.equal(again.tensors["a"], table.tensors["a"])
    header = read_header(tmp_path / "t.safetensors")
    assert header["shapes"] == {"a": [2, 3], "b": [4]}
    assert header["facts"]["made"] == "x"


def test_the_hash_covers_content_and_facts(bottom: Bottom) -> None:
    table = table_for(tiny_context(bottom), "clusters", "cut", {"a": torch.zeros(3)})
    others = [
        replace(table, tensors={"a": torch.tensor([0.0, 0.0, 1e-30])}),
        replace(table, tensors={"b": torch.zeros(3)}),
        replace(table, tensors={"a": torch.zeros(3, 1)}),
        replace(table, tensors={"a": torch.zeros(3).to(torch.int32)}),
        replace(table, facts={**table.facts, "cut": 9}),
        replace(table, kind="shift"),
    ]
    assert len({table.sha256(), *(other.sha256() for other in others)}) == 7


def test_a_changed_byte_is_noticed(bottom: Bottom, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_table(table_for(tiny_context(bottom), "clusters", "cut", {"a": torch.zeros(64)}), path)
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArtifactCorrupt, match="does not match its hash"):
        read_table(path)
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ArtifactCorrupt, match="damaged"):
        read_table(path)
    path.write_bytes(b"\x80\x04\x95")  # a pickle is never opened
    with pytest.raises(ArtifactCorrupt, match="no table"):
        read_table(path)


def test_cached_makes_a_table_once_for_the_same_settings(bottom: Bottom, tmp_path: Path) -> None:
    context = tiny_context(bottom, cache=tmp_path)
    calls = []

    def make() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"x": torch.full((2,), float(len(calls)))}

    one = {"injection": "cut", "size": 3}
    assert cached(context, "demo", one, make)["x"].tolist() == [1.0, 1.0]
    assert cached(context, "demo", one, make)["x"].tolist() == [1.0, 1.0]
    assert cached(context, "demo", {**one, "size": 4}, make)["x"].tolist() == [2.0, 2.0]
    other_text = tiny_context(bottom, cache=tmp_path, public_rows=[[5, 6]])
    assert cached(other_text, "demo", one, make)["x"].tolist() == [3.0, 3.0]


def test_tables_are_found_by_hash_only_where_they_belong(bottom: Bottom, tmp_path: Path) -> None:
    elsewhere, here = tmp_path / "elsewhere.safetensors", tmp_path / "tables"
    context = tiny_context(bottom, cache=here)
    sha256 = write_table(table_for(context, "clusters", "cut", {"a": torch.ones(3)}), elsewhere)
    with pytest.raises(InvalidInput, match="privtune tables add"):
        find_table(context, "clusters", "cut", sha256)
    adopt(elsewhere, here)
    assert find_table(context, "clusters", "cut", sha256[:12]).tensors["a"].tolist() == [1, 1, 1]
    with pytest.raises(InvalidInput, match="at least 12"):
        find_table(context, "clusters", "cut", sha256[:5])
    with pytest.raises(InvalidInput, match="no shift table"):
        find_table(context, "shift", "cut", sha256)
    with pytest.raises(InvalidInput, match="another injection"):
        find_table(context, "clusters", "embedding", sha256)
    with pytest.raises(InvalidInput, match="another cut"):
        find_table(tiny_context(bottom, cache=here, cut=2), "clusters", "cut", sha256)
    with pytest.raises(InvalidInput, match="another vocabulary"):
        find_table(tiny_context(bottom, cache=here, special_ids=frozenset({0})), "clusters", "cut", sha256)

"""`privtune tables` as an owner uses it, on a tiny model on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from privtune.device.cli import main
from privtune.device.noise.tables.cluster_table import save_clusters
from privtune.device.noise.tables.table_cache import SUFFIX, read_table
from privtune.device.release.noising import noise_context
from privtune.shared.modeling.bottom_package import bottom_from_model
from tests.support.tiny_models import VOCAB, WIDTH, tiny_classifier, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_classifier("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and everything that was printed."""
    capsys.readouterr()
    try:
        main(["tables", *arguments])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def building(model: Path, home: Path, *more: str) -> list[str]:
    return ["build", "--model", str(model), "--home", str(home), *more]


def test_build_reports_convergence_and_keeps_the_tables(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = building(model, tmp_path, "--mechanism", "privtune", "--param", "neighbours=4", "--json")
    code, out = call(capsys, *asked)
    assert code == 0
    report: dict[str, Any] = json.loads(out)
    assert report["figures"]["loss_last"] < report["figures"]["loss_first"]
    kinds = {row["kind"] for row in report["tables"]}
    assert kinds == {"prototypes", "nearest", "shift"}
    assert json.loads(call(capsys, *asked)[1])["tables"] == []
    code, out = call(capsys, "show", "--home", str(tmp_path))
    assert code == 0
    assert all(kind in out for kind in kinds)
    with_top = json.loads(call(capsys, *asked, "--top")[1])
    assert [row["kind"] for row in with_top["tables"]] == ["shift"]
    assert with_top["figures"] != report["figures"]


def test_a_colleagues_clusters_are_added_and_used(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    context = noise_context(bottom_from_model(str(model), "classification", 1), 1, home)
    cluster_V = torch.arange(VOCAB) % 5
    cluster_V[[i for i in context.special_ids if i < VOCAB]] = -1
    file = tmp_path / "theirs.safetensors"
    sha256 = save_clusters(file, context, "cut", cluster_V, torch.randn(5, WIDTH), fitted_on="public")
    code, out = call(capsys, "add", str(file), "--home", str(home))
    assert code == 0
    assert f"table=sha256:{sha256[:16]}" in out
    asked = building(model, home, "--mechanism", "shared", "--param", f"table=sha256:{sha256[:16]}", "--json")
    assert json.loads(call(capsys, *asked)[1])["figures"]["clusters"] == 5
    code, out = call(capsys, "show", str(file))
    assert code == 0
    assert ["fitted_on:", "public"] in [line.split() for line in out.splitlines()]


def test_a_damaged_table_is_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, *building(model, tmp_path, "--mechanism", "shared", "--param", "cluster_size=8", "--json"))
    (file,) = (tmp_path / "tables").glob(f"clusters-*{SUFFIX}")
    assert read_table(file).kind == "clusters"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    for arguments in (["show", str(file)], ["add", str(file), "--home", str(tmp_path / "other")]):
        code, out = call(capsys, *arguments)
        assert code != 0
        assert "does not match its hash" in out
        assert len(out.strip().splitlines()) == 1


def test_public_texts_change_what_is_built(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lexicon, texts = tmp_path / "lexicon.tsv", tmp_path / "texts.txt"
    lexicon.write_text("".join(f"high\tw{i}\nlow\tw{i + 30}\n" for i in range(5) for _ in range(6)))
    texts.write_text("w1 w2 w3\nw4 w5\n")
    asked = building(model, tmp_path, "--mechanism", "shared", "--param", "groups=public", "--param", "cluster_size=5")
    code, out = call(capsys, *asked)
    assert code == 2
    assert "two classes" in out
    code, out = call(capsys, "public", "--texts", str(texts), "--labelled", str(lexicon), "--home", str(tmp_path))
    assert code == 0
    assert "2 texts, 60 labelled" in out
    code, out = call(capsys, *asked)
    assert code == 0
    assert "clusters" in out
    assert call(capsys, "public", "--home", str(tmp_path))[0] == 2


def test_the_noise_free_mechanism_has_nothing_to_build(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = call(capsys, *building(model, tmp_path, "--mechanism", "dchi"))
    assert code == 0
    assert "Nothing to build" in out
    code, out = call(capsys, *building(model, tmp_path, "--mechanism", "fog"))
    assert code == 2
    assert "there is no mechanism 'fog'" in out


def test_a_table_that_is_not_there_is_not_called_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys, "add", str(tmp_path / "none.safetensors"), "--home", str(tmp_path / "home"))
    assert code == 2
    assert "no such file" in out
    assert not (tmp_path / "home" / "tables").exists()

"""A base in bf16, 8 or 4 bits: jobs share it, train float32 adapters on it, and devices see the float32 model."""

import pytest
import torch

from privtune.cloud.catalog import Catalog
from privtune.cloud.compute.host import Host
from privtune.cloud.compute.top_session import TopSession
from privtune.cloud.compute.work import compute_together
from privtune.shared import packages
from privtune.shared.errors import ModelUnsupported, PackageMissing
from privtune.shared.job_spec import JobSpec
from tests.support.adapters import held_tensors
from tests.support.tiny_models import save_model

WIDE = 64  # 4 bits come with one scale for 64 weights
LOW = {"bf16": 0.999, "int8": 0.999, "nf4": 0.9}  # cosine to what float32 gives, least


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    save_model(made / "enc", "bert", "classification", hidden_size=WIDE, intermediate_size=2 * WIDE)
    save_model(made / "gpt2", "gpt2", "causal-lm")
    return made


@pytest.fixture(scope="module")
def hosts(folder):
    catalog = Catalog([f"{name}={folder / name}" for name in ("enc", "gpt2")])
    return {stored: Host(catalog, folder / f"bottoms-{stored}", stored) for stored in ("fp32", *LOW)}


def spec(**changes):
    return JobSpec.model_validate({"model": "enc", "training_file": "device://x", "tuning": {"dropout": 0.0}} | changes)


def batch(seed=0):
    h_BTD = torch.randn(3, 5, WIDE, generator=torch.Generator().manual_seed(seed))
    return h_BTD, torch.ones(3, 5, dtype=torch.long), torch.arange(3) * 5


def trained(host, folder, **changes):
    top = TopSession(host, spec(**changes), 4, folder)
    for _ in range(2):
        out_ND = top.forward(0, *batch(), want_cut_gradient=False).now()
        top.backward(0, out_ND.cos()).now()
        top.apply()
    return top, out_ND


@pytest.mark.parametrize("stored", LOW)
def test_a_job_trains_on_it(hosts, tmp_path, stored):
    _, wanted = trained(hosts["fp32"], tmp_path / "fp32")
    top, found = trained(hosts[stored], tmp_path / stored)
    assert torch.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > LOW[stored]
    assert {value.dtype for value in top.training_state().values()} == {torch.float32}


@pytest.mark.parametrize("stored", LOW)
def test_jobs_share_it_and_run_as_one(hosts, tmp_path, stored):
    tops = [trained(hosts[stored], tmp_path / str(number), train={"seed": number})[0] for number in range(3)]
    own = [{t.untyped_storage().data_ptr(): t for t in held_tensors(top)} for top in tops]
    common = set.intersection(*(set(held) for held in own))
    extra = sum(t.nbytes for held in own for place, t in held.items() if place not in common)
    assert extra < 1.05 * 3 * 3 * 4 * tops[0].trainable_parameters
    wanted = [top.evaluate(*batch()) for top in tops]
    works = [next(top.evaluating(*batch())) for top in tops]
    compute_together(works)
    for work, out_ND in zip(works, wanted, strict=True):
        torch.testing.assert_close(work.result(), out_ND, rtol=0.02, atol=0.02)  # bf16 of a larger product


@pytest.mark.parametrize("stored", LOW)
def test_a_device_gets_and_is_compared_with_float32(hosts, stored):
    exact, small = hosts["fp32"], hosts[stored]
    prints = [host.partition("enc", "classification").fingerprint() for host in (exact, small)]
    assert prints[0] == prints[1]
    assert small.base_sha256(spec()) == exact.base_sha256(spec())
    assert small.bottom_sha256(spec()) == exact.bottom_sha256(spec())
    files = [sorted(host.bottom_package(spec()).glob("*.safetensors")) for host in (exact, small)]
    assert files[0]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_whatever_trains_the_blocks_or_computes_in_float32_has_them_whole(hosts):
    full, exact = spec(tuning={"method": "full"}), spec(train={"precision": "fp32"})
    assert [hosts["nf4"].stored(one) for one in (spec(), full, exact)] == ["nf4", "fp32", "nf4"]
    assert [hosts["bf16"].stored(one) for one in (spec(), full, exact)] == ["bf16", "fp32", "fp32"]
    assert Host(Catalog(), hosts["fp32"]._packages).stored(spec()) == "fp32"  # on a CPU


def test_it_takes_the_memory_that_it_says(hosts):
    def size(stored):
        blocks = hosts[stored].partition("enc", "classification", stored).blocks
        return sum(p.nbytes for p in blocks.parameters() if p.dim() == 2 or p.dtype == torch.uint8)

    for stored, share in (("bf16", 2), ("int8", 4), ("nf4", 8)):
        assert size("fp32") == share * size(stored)


def test_other_layers_and_a_missing_package_are_one_clear_line(hosts, tmp_path, monkeypatch):
    with pytest.raises(ModelUnsupported, match="use bf16"):
        hosts["nf4"].partition("gpt2", "causal-lm")
    hosts["bf16"].partition("gpt2", "causal-lm")
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PackageMissing, match="quantised"):
        Host(Catalog(), tmp_path, "int8")

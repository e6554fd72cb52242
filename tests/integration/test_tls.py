"""Both doors over TLS between a real device and a real cloud; anything less than trusted TLS is refused."""

import grpc
import pytest

from privtune.cloud.server.tls import create_certificates
from privtune.device.data.source import DataSource
from privtune.device.link.download import artifact_of
from privtune.device.link.gateway import GatewayAccess
from privtune.device.link.rpc import Link
from privtune.device.session.run_settings import RunSettings
from privtune.shared.errors import CloudUnreachable, InvalidInput
from tests.support.owner import Owner, job_id_of
from tests.support.proxy import Proxy
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud, World

pytestmark = pytest.mark.timeout(120)
KEY = "pt-" + "k" * 40


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    model = save_model(folder / "enc", "bert", "classification", num_labels=2)
    cloud = ProcessCloud(folder / "cloud", {"enc": model}, tls=True)
    data = DataSource(path=str(write_sentences(folder / "train.tsv", 60)))
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=KEY, ca_cert=cloud.ca, home=folder / "home")
    yield World(cloud=cloud, folder=folder, settings=settings, data=data, validation=data, models={"enc": model})
    cloud.stop()


@pytest.fixture
def owner(world, capsys):
    return Owner(world=world, capsys=capsys, environment={"PRIVTUNE_CA": str(world.cloud.ca)})


def other_authority(tmp_path):
    return create_certificates(tmp_path / "other", ["localhost"]).ca


def test_a_whole_job_over_tls_and_no_word_of_http_or_grpc_in_the_clear(owner):
    with Proxy(owner.world.cloud.grpc_address) as proxy:
        done = owner.finetune("--grpc-address", proxy.address)
        assert done.code == 0, done.err
        raw = proxy.bytes_from(device=True) + proxy.bytes_from(device=False)
    assert len(raw) > 20_000
    for word in (b"PRI * HTTP/2.0", b"SplitService", KEY.encode(), job_id_of(done).encode()):
        assert word not in raw


def test_prediction_and_export_over_tls(owner, tmp_path):
    job_id = job_id_of(owner.finetune("--new"))
    assert owner("predict", job_id, "--text", "w1 w2").code == 0
    assert owner("export", job_id, str(tmp_path / "out")).code == 0


def test_another_authority_is_refused_at_both_doors(owner, tmp_path):
    wrong = other_authority(tmp_path)
    done = owner("jobs", "list", PRIVTUNE_CA=str(wrong))
    assert done.code == 8
    assert "No trusted TLS connection" in done.line
    assert "--ca-cert" in done.line
    endpoint = GatewayAccess(address=owner.world.cloud.grpc_address, api_key=KEY, ca_cert=wrong)
    with Link(endpoint) as link, pytest.raises(CloudUnreachable, match="TLS"):
        list(link.fetch(artifact_of(1, "ftjob-x"), ""))


def test_no_authority_at_all_trusts_nobody(owner):
    owner.environment["PRIVTUNE_CA"] = ""
    done = owner("jobs", "list")
    assert done.code == 8
    assert "No trusted TLS connection" in done.line


def test_an_authority_given_for_an_address_without_tls_is_told(owner):
    done = owner("jobs", "list", PRIVTUNE_CLOUD=owner.world.cloud.http_url.replace("https:", "http:"))
    assert done.code == 8
    assert done.line


def test_clear_text_to_a_gateway_with_tls_gets_nothing(world):
    with (
        Link(GatewayAccess(address=world.cloud.grpc_address, api_key=KEY)) as link,
        pytest.raises(CloudUnreachable, match="TLS"),
    ):
        list(link.fetch(artifact_of(1, "ftjob-x"), ""))


@pytest.mark.parametrize("address", ["cloud.example:8081", "192.0.2.7:8081", "[2001:db8::1]:8081"])
def test_the_device_never_speaks_clear_text_to_another_machine(address, monkeypatch):
    """Without --ca-cert the system's authorities decide; an insecure channel is never made."""
    made = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda *_: made.append("clear"))
    with Link(GatewayAccess(address=address, api_key=KEY)):
        assert made == []


def test_an_unreadable_authority_is_told_by_name(world, tmp_path):
    endpoint = GatewayAccess(address=world.cloud.grpc_address, api_key=KEY, ca_cert=tmp_path / "none.pem")
    with pytest.raises(InvalidInput, match=r"none\.pem can't be read"):
        Link(endpoint)


def test_the_authority_of_the_environment_is_trusted_at_both_doors(owner, monkeypatch):
    """SSL_CERT_FILE alone, without --ca-cert: a whole job, so REST and gRPC."""
    owner.environment["PRIVTUNE_CA"] = ""
    monkeypatch.setenv("SSL_CERT_FILE", str(owner.world.cloud.ca))
    done = owner.finetune("--new")
    assert done.code == 0, done.err

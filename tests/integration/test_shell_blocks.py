"""Every line of README's and the quickstart's shell blocks runs here, in their order, or is listed with the reason.

The cloud is a real process with a tiny model under the name that the pages use, the file a real one in the folder.
"""

import re
import sys
from pathlib import Path

import pytest

from privtune.cloud.cli import main as privtune_cloud
from privtune.device.data.source import DataSource
from privtune.device.session.run_settings import RunSettings
from tests.support.owner import job_id_of
from tests.support.texts import write_sentences
from tests.support.tiny_models import save_model
from tests.support.world import ProcessCloud, World

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)
PAGES = ("README.md", "docs/quickstart.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # language, text
INSTALLS = "installs: `make env`, tests/architecture/test_install_torch.py and the images do the same"
NOT_RUN = {
    "make demo": "tests/e2e runs it at a small size",
    "make test": "this is it",
    "python3 -m venv": INSTALLS,
    ". .venv/bin/activate": INSTALLS,
    "scripts/install_torch.sh": INSTALLS,
    "pip install": INSTALLS,
    "export ": "the environment is set for each command",
    "privtune-cloud serve": "the fixture starts it, with a tiny model",
    "privtune init": "asks; tests/unit/device/cli/test_settings_file.py answers",
    "privtune push": "needs a hub; tests/integration/test_push.py has one",
}


def lines(page):
    """Commands of a page's blocks without a language, comments cut; a picture has none."""
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    for line in [line for language, block in blocks if not language for line in block.splitlines()]:
        if command := re.sub(r"\s+#.*", "", line).strip():
            yield command


def commands(page):
    return [one for one in lines(page) if re.match(r"(\.|[a-z])[\w./-]* ", one + " ") and "─" not in one]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    model = save_model(folder / "base", "bert", "classification", num_labels=2)
    cloud = ProcessCloud(folder / "cloud", {"minilm": model})
    settings = RunSettings(grpc_address=cloud.grpc_address, api_key=cloud.api_key, home=folder / "home")
    data = DataSource(path=str(write_sentences(folder / "reviews.tsv", 40)))
    yield World(cloud=cloud, folder=folder, settings=settings, data=data, validation=data, models={"minilm": model})
    cloud.stop()


def cloud_command(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["privtune-cloud", *words])
    with pytest.raises(SystemExit) as ended:
        privtune_cloud()
    assert ended.value.code == 0, capsys.readouterr().err


def test_every_command_runs(world, owner, monkeypatch, capsys):
    """Each once, though both pages say it; a second job is the one that later lines mean."""
    monkeypatch.chdir(world.folder)
    ran, job = set(), ""
    for command in (one for page in PAGES for one in commands(page)):
        if command in ran or any(command.startswith(one) for one in NOT_RUN):
            continue
        program, *words = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', command)]
        words = [job if word == "JOB" else word for word in words]
        if program == "privtune-cloud":
            cloud_command(words, monkeypatch, capsys)
        else:
            assert program == "privtune", f"{command}: neither run nor listed"
            done = owner(*words)
            assert done.code == 0, f"{command}: {done.err or done.out}"
            job = job_id_of(done) if words[0] == "finetune" else job
        ran.add(command)
    assert len(ran) > 12


def test_nothing_is_listed_that_no_page_says():
    said = [command for page in PAGES for command in commands(page)]
    assert [one for one in NOT_RUN if not any(command.startswith(one) for command in said)] == []

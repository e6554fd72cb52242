"""privtune.yaml: every command reads it, after options and environment, and it never comes from the folder at hand."""

import pytest
import typer

from privtune.device.cli import app, main
from privtune.device.client.settings_file import settings_of
from privtune.shared.errors import DataInvalid, InvalidInput

GROUP = typer.main.get_command(app)


def of(tmp_path, text):
    path = tmp_path / "privtune.yaml"
    path.write_text(text)
    return settings_of(GROUP, path)


def leaves(group, found, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, found[name], (*path, name))
        else:
            yield (*path, name), command, found[name]


def test_a_common_setting_reaches_every_command_that_has_the_option(tmp_path):
    found = of(tmp_path, "cloud: https://one.example\nthreads: 2\njson: true\n")
    seen = 0
    for path, command, mine in leaves(GROUP, found):
        names = {parameter.name for parameter in command.params}
        assert mine.get("cloud") == ("https://one.example" if "cloud" in names else None), path
        assert mine.get("threads") == (2 if "threads" in names else None), path
        assert mine.get("as_json") is (True if "as_json" in names else None), path
        seen += "cloud" in names
    assert seen > 10


def test_a_command_has_settings_of_its_own(tmp_path):
    found = of(tmp_path, "protect: words\nfinetune: {batch-size: 8, protect: names}\njobs: {list: {limit: 3}}\n")
    assert found["finetune"] == {"batch_size": 8, "protect": "names"}
    assert found["audit"]["protect"] == "words"
    assert found["jobs"]["list"]["limit"] == 3


def test_no_file_is_no_setting():
    assert settings_of(GROUP, None) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 2\n", "`epochs` is no setting of every command"),
        ("finetune: {epoch: 2}\n", "`privtune finetune` has no option --epoch"),
        ("jobs: {lists: {}}\n", "no command `jobs lists`"),
        ("cloud: {x: 1}\n", "takes a value"),
        ("- a\n", "keys like"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, text, said):
    with pytest.raises(InvalidInput, match=said):
        of(tmp_path, text)


def test_what_is_no_yaml_is_refused(tmp_path):
    with pytest.raises(DataInvalid, match="line 2"):
        of(tmp_path, "a: [\n")


def ended(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVTUNE_HOME", str(tmp_path / "home"))
    for name in ("PRIVTUNE_CLOUD", "PRIVTUNE_API_KEY", "PRIVTUNE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def test_option_before_environment_before_file_before_default(home, capsys, monkeypatch):
    def url(*options):
        return ended(capsys, "models", "--api-key", "pt-x", *options)[2]

    assert "Which cloud?" in url()
    (home / "privtune.yaml").write_text("cloud: http://file.example\n")
    assert "file.example" in url()
    monkeypatch.setenv("PRIVTUNE_CLOUD", "http://environment.example")
    assert "environment.example" in url()
    assert "option.example" in url("--cloud", "http://option.example")


def test_a_file_of_the_folder_at_hand_is_not_read(home, tmp_path, capsys, monkeypatch):
    (tmp_path / "privtune.yaml").write_text("cloud: http://evil.example\n")
    monkeypatch.chdir(tmp_path)
    assert "Which cloud?" in ended(capsys, "models", "--api-key", "pt-x")[2]
    assert "evil.example" in ended(capsys, "--config", "privtune.yaml", "models", "--api-key", "pt-x")[2]


def test_a_wrong_file_is_one_line_and_help_still_helps(home, capsys):
    (home / "privtune.yaml").write_text("clod: x\n")
    code, _, err = ended(capsys, "models")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert ended(capsys, "models", "--help")[0] == 0


def test_init_writes_what_every_command_reads(home, capsys):
    options = ("--cloud", "http://127.0.0.1:9", "--api-key", "pt-secret", "--protect", "words")
    assert ended(capsys, "init", "--yes", *options)[0] == 0
    file = home / "privtune.yaml"
    assert file.stat().st_mode & 0o077 == 0
    code, _, err = ended(capsys, "models")
    assert code == 8
    assert "127.0.0.1:9" in err
    assert settings_of(GROUP, file)["finetune"]["protect"] == "words"


@pytest.mark.parametrize(
    "options", [(), ("--cloud", "ftp://x"), ("--cloud", "http://127.0.0.1:9", "--protect", "nope")]
)
def test_init_writes_nothing_that_no_command_could_use(home, capsys, options):
    assert ended(capsys, "init", "--yes", *options)[0] == 2
    assert not (home / "privtune.yaml").exists()


def test_init_asks(home, monkeypatch, capsys):
    answers = iter(["http://127.0.0.1:9", "", "names"])
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(answers))
    assert ended(capsys, "init")[0] == 0
    assert "api_key" not in (home / "privtune.yaml").read_text()

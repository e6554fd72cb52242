"""Whatever an owner gives wrongly ends in one clear line and a documented exit code, and leaves nothing half-done."""

import json
import os

import numpy as np
import pytest

from privtune.device.link.rpc import Link
from privtune.device.model.bottom import load_bottom
from privtune.device.session.handshake import open_request
from privtune.shared.errors import NonFinite
from privtune.shared.versions import OURS, Spoken
from privtune.shared.wire import FORWARD, Message, pack_positions
from privtune.split.v1 import split_pb2 as pb
from tests.support.leases import HOLDER
from tests.support.owner import job_id_of
from tests.support.world import ProcessCloud, build_world

pytestmark = pytest.mark.timeout(60)  # an agent that takes no job would wait for ever


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cloud that takes tensors of at most 1 MiB."""
    os.environ["PRIVTUNE_CLOUD_MAX_TENSOR_MIB"] = "1"
    try:
        built = build_world(tmp_path_factory.mktemp("bad-input"), ProcessCloud)
    finally:
        del os.environ["PRIVTUNE_CLOUD_MAX_TENSOR_MIB"]
    yield built
    built.cloud.stop()


def written(world, name, content):
    file = world.folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


# ---- before a job exists


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--model", "nope"], 4, "nope"),
        (["--cut", "3"], 4, "0 to 2"),
        (["--cut", "-1"], 2, "--cut"),
        (["--text-column", "txt"], 3, 'no column "txt" for text. Its columns: "sentence", "label"'),
        (["--task", "causal-lm", "--tail", "1", "--model", "dec", "--label-column", "label"], 3, "no label"),
        (["--task", "causal-lm", "--tail", "1"], 2, "causal-lm"),
        (
            [
                "--task",
                "causal-lm",
                "--model",
                "dec",
                "--protect",
                "names",
                "--surrogates",
                "nothing",
                "--mechanism",
                "dchi",
            ],
            2,
            "--tail 4 to train the last four blocks here",
        ),
        (["--skip", "none"], 2, "give --tail as well"),
        (["--skip", "tuned", "--tail", "1", "--cut", "0"], 2, "at cut 0 there are none"),
        (["--tail", "2"], 4, "leave none of enc's 3 blocks to the cloud"),
        (["--tail", "1", "--labels", "shared"], 2, "a tail contradict each other"),
        (["--max-length", "49"], 2, "48"),
        (["--mechanism", "dchi", "--param", "eta=-1"], 2, "eta"),
        (["--mechanism", "nonsense"], 2, "nonsense"),
        (["--protect", "names", "--surrogates", "nothing"], 2, "Say --protect none"),
        (["--protect", "everything"], 2, "there are: none, names, words, all"),
        (["--param", "noise_ratio=6"], 2, "mechanism none has no parameter"),
        (["--learning-rate", "0"], 2, "--learning-rate"),
        (["--holdout", "0.1", "--validation", "dev.tsv"], 2, "not both"),
        (["--data", "nowhere.csv"], 3, "no such file"),
        (["--ca-cert", "/no/such.pem"], 2, "--ca-cert"),
    ],
)
def test_wrong_options_make_no_job(owner, arguments, code, words):
    if arguments[0] == "--ca-cert":
        owner.environment["PRIVTUNE_CLOUD"] = owner.world.cloud.http_url.replace("http:", "https:")
    before = owner.jobs()
    done = owner.finetune(*arguments)
    assert done.code == code, done.err
    assert words in done.line
    assert owner.jobs() == before
    assert not (owner.home / "jobs").exists()


FILES = {
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"text,label\n", "no records"),
    "latin.csv": (b"text,label\ngood,1\ncaf\xe9,0\n", "latin.csv, line 3: not UTF-8 (byte offset 21). Save the file"),
    "one-label.csv": (b"text,label\na,1\nb,1\n", "all records have the same label"),
    "no-label.csv": (b"text,kind\na,1\n", "--label-column"),
    "no-text.csv": (b"words,label\na,1\n", "--text-column"),
    "ragged.csv": (b"text,label\na,b,1\n", "line 2: 3 fields"),
    "half.jsonl": (
        b'{"text":"a\\ud83d","label":1}\n',
        'line 1, column "text": half of a character (U+D83D',
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_can_not_be_used_makes_no_job(owner, name):
    content, words = FILES[name]
    before = owner.jobs()
    done = owner.finetune(data=written(owner.world, name, content))
    assert done.code == 3
    assert words in done.line
    assert owner.jobs() == before


def test_a_held_out_label_that_training_has_not_seen(owner):
    held_out = written(owner.world, "odd.tsv", "sentence\tlabel\nw1\tlow\nw2\tconfidential\n")
    before = owner.jobs()
    done = owner.finetune("--validation", str(held_out))
    assert done.code == 3
    assert 'odd.tsv, line 3, column "label": this label does not occur in the training data' in done.line
    assert "confidential" not in done.line
    assert owner.jobs() == before


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"PRIVTUNE_API_KEY": "pt-" + "x" * 43}, 5, "not known"),
        ({"PRIVTUNE_API_KEY": ""}, 5, "PRIVTUNE_API_KEY"),
        ({"PRIVTUNE_CLOUD": "http://127.0.0.1:1"}, 8, "Check the address and that the cloud runs"),
        ({"PRIVTUNE_CLOUD": ""}, 2, "PRIVTUNE_CLOUD"),
        ({"PRIVTUNE_CLOUD": "http://cloud.example"}, 2, "Use https://"),
        ({"PRIVTUNE_CLOUD": "nonsense"}, 2, "https://host:port"),
    ],
)
@pytest.mark.parametrize("command", ["finetune", "jobs", "predict", "export"])
def test_a_cloud_that_is_not_there_or_does_not_know_the_key(owner, command, environment, code, words):
    commands = {
        "finetune": lambda: owner.finetune(**environment),
        "jobs": lambda: owner("jobs", "list", **environment),
        "predict": lambda: owner("predict", "ftjob-x", "--text", "w1", **environment),
        "export": lambda: owner("export", "ftjob-x", "out", **environment),
    }
    done = commands[command]()
    assert done.code == code, done.err
    assert words in done.line


# ---- with a job, which says why


def status_of(owner, job_id):
    job = owner.world.cloud.control.get_job(job_id)
    events = " | ".join(event["message"] for event in owner.world.cloud.control.events(job_id))
    return job["status"], job["privtune"]["reason"], events


def test_texts_over_the_limit_are_cut_and_counted(owner):
    texts = ["w1 " * length for length in (5, 6, 7, 40, 14)]  # with [CLS] and [SEP]: 7, 8, 9, 42 and 16 tokens
    rows = "".join(f"{text.strip()}\t{number % 2}\n" for number, text in enumerate(texts))
    file = written(owner.world, "long.tsv", "text\tlabel\n" + rows)
    done = owner.finetune("--max-length", "8", "--max-steps", "1", data=file)
    assert done.code == 0, done.err
    assert "(3 longer than the limit and truncated)" in done.out
    job_id = job_id_of(done)
    half = owner("predict", job_id, "--text", "w1", "--text", "a\ud83d")
    assert (half.code, "a text has half of a character (U+D83D, character 2)" in half.line) == (2, True)
    predicted = owner("predict", job_id, "--text", "w1 " * 20, "--text", "w2")
    assert predicted.code == 0
    assert "1 of 2 texts" in predicted.err
    assert "8 tokens" in predicted.err


def test_a_gateway_that_is_not_there_leaves_a_job_that_goes_on_later(owner):
    done = owner.finetune("--grpc-address", "127.0.0.1:1", "--new")
    assert done.code == 8
    job_id = job_id_of(done)
    assert f"To resume: privtune finetune --job {job_id}" in done.line
    assert status_of(owner, job_id)[0] == "queued"
    again = owner("finetune", "--job", job_id)
    assert again.code == 0, again.err
    assert status_of(owner, job_id)[0] == "succeeded"


FUTURE = Spoken(oldest=998, newest=999, version="9.9")


def test_another_protocol_is_told_before_a_job_exists(owner, monkeypatch):
    monkeypatch.setattr("privtune.device.link.rest.OURS", FUTURE)
    before = owner.jobs()
    done = owner.finetune("--new")
    assert done.code == 9
    assert f"The device speaks protocol 998 to 999 (PrivTune 9.9), the cloud {OURS}. Upgrade the cloud." in done.line
    assert owner.jobs() == before


def test_another_protocol_at_the_gateway_is_refused_and_the_job_says_why(owner, monkeypatch):
    monkeypatch.setattr("privtune.device.session.handshake.OURS", FUTURE)
    done = owner.finetune("--new", "--grpc-address", owner.world.cloud.grpc_address)
    assert done.code == 9
    assert f"The device speaks protocol 998 to 999 (PrivTune 9.9), the cloud {OURS}. Upgrade the cloud." in done.line
    status, _, events = status_of(owner, job_id_of(done))
    assert status == "queued"
    assert "The device speaks protocol 998 to 999" in events


def test_another_model_on_the_device_is_refused_and_the_job_says_why(owner):
    done = owner.finetune("--new", "--local-model", str(owner.world.models["dec"]))
    assert done.code == 9
    assert "use the same model on both sides" in done.line
    status, _, events = status_of(owner, job_id_of(done))
    assert status == "queued"
    assert "has another shape" in events


def test_a_message_over_the_clouds_limit_fails_the_job_with_what_to_change(owner):
    rows = "".join(f"{'w1 ' * 40}\t{number % 2}\n" for number in range(300))  # 300 x 42 x 32 x 4 bytes: 1.6 MB
    file = written(owner.world, "wide.tsv", "text\tlabel\n" + rows)
    done = owner.finetune("--batch-size", "300", "--max-length", "48", data=file)
    assert done.code == 10
    assert "over the cloud's limit of 1048576; lower --batch-size or --max-length" in done.line
    status, reason, _ = status_of(owner, job_id_of(done))
    assert status == "failed"
    assert "--batch-size" in reason


def test_training_that_diverges_fails_the_job_with_what_to_change(owner):
    wild = ("--learning-rate", "1", "--lora-alpha", "1e18", "--max-grad-norm", "0", "--warmup-ratio", "0")
    done = owner.finetune(*wild, "--max-steps", "20", "--epochs", "10", "--schedule", "constant")
    assert done.code == 11
    assert "--learning-rate" in done.line
    status, reason, _ = status_of(owner, job_id_of(done))
    assert status == "failed"
    assert "--learning-rate" in reason


def test_nan_in_a_frame_is_refused_and_fails_the_job(world):
    """Our own codec refuses to encode NaN, so the frame is built by hand, as a broken or rigged device would."""
    spec = world.spec()
    job_id = world.cloud.create_job(spec)
    settings = world.device(home=world.folder / "nan-home")
    with Link(settings.endpoint) as link:
        parts = load_bottom(
            link, job_id, spec, home=settings.home, local_model=None, label_names=(), say=lambda _: None
        )
        opened = link.open(open_request(parts, job_id, spec, HOLDER, total_steps=1))
        stream = link.stream(opened, job_id, infer=False, patience=20)
        message = Message(kind=FORWARD, step=0, rows=3, width=parts.hidden_size, codec=spec.codec)
        message.payload = np.full((3, parts.hidden_size), np.nan, np.float32).tobytes()
        readout = pack_positions(np.array([0]))
        message.forward = pb.ForwardHeader(record_ids=[1], lengths=[3], inlined=[True], readout=readout)
        stream.send(message)
        with pytest.raises(NonFinite, match="NaN"):
            stream.expect(0, 0)
        stream.abort()
    job = world.cloud.control.get_job(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "NON_FINITE")


# ---- the agent: jobs that others submitted


def agent(owner, *arguments, **changes):
    return owner("agent", "--once", "--poll", "0.1", *arguments, **changes)


@pytest.mark.parametrize("name", ["empty.csv", "latin.csv", "one-label.csv", "missing.csv", "half.jsonl"])
def test_an_agent_whose_data_can_not_be_used_fails_the_job_without_telling_the_file(owner, name):
    file = owner.world.folder / "private-name" / name
    file.parent.mkdir(exist_ok=True)
    if name in FILES:
        file.write_bytes(FILES[name][0])
    handle = name.partition(".")[0]
    spec = owner.world.spec(training_file=f"device://{handle}")
    job_id = owner.world.cloud.create_job(spec)
    done = agent(owner, "--data", f"{handle}={file}", "--protect", "none")
    assert done.code == 3, (done.out, done.err)
    assert done.line
    assert "could not report" not in done.out
    status, reason, events = status_of(owner, job_id)
    assert status == "failed"
    assert "data set" in reason
    assert "private-name" not in reason + events


def test_an_agent_refuses_what_its_policy_forbids_and_the_job_says_so(owner):
    job_id = owner.world.cloud.create_job(owner.world.spec(training_file="device://sentences"))
    done = agent(owner, "--data", f"sentences={owner.world.data.path}")
    assert done.code == 7
    assert "allows the protections names and stronger" in done.line
    status, reason, _ = status_of(owner, job_id)
    assert status == "failed"
    assert "replaces nothing" in reason


def test_an_agent_without_the_held_out_set_that_a_job_names(owner):
    spec = owner.world.spec(validation_file="device://elsewhere")
    job_id = owner.world.cloud.create_job(spec)
    done = agent(owner, "--data", f"sentences={owner.world.data.path}", "--protect", "none")
    assert done.code == 7
    assert "device://elsewhere" in done.line
    assert status_of(owner, job_id)[0] == "failed"


def test_an_agent_takes_only_jobs_on_its_own_data(owner):
    other = owner.world.cloud.create_job(owner.world.spec(training_file="device://elsewhere"))
    spec = owner.world.spec(train={"max_steps": 2})
    mine = owner.world.cloud.create_job(spec)
    done = agent(owner, "--data", f"sentences={owner.world.data.path}", "--protect", "none", "--json")
    assert done.code == 0, done.err
    assert [json.loads(line)["event"] for line in done.out.splitlines()][-1] == "finished"
    assert status_of(owner, mine)[0] == "succeeded"
    assert status_of(owner, other)[0] == "queued"


@pytest.mark.parametrize("arguments", [[], ["--data", "reviews"], ["--data", "a b=x.csv"], ["--config", "/no.yaml"]])
def test_an_agent_without_usable_data_sets_does_not_start(owner, arguments):
    done = agent(owner, *arguments)
    assert done.code in (2, 3)
    assert "data" in done.line or "/no.yaml" in done.line


def test_an_agent_with_a_wrong_key_ends(owner):
    done = agent(owner, "--data", f"s={owner.world.data.path}", PRIVTUNE_API_KEY="pt-" + "x" * 43)
    assert done.code == 5
    assert done.line

"""The transcript of a run: its lines form a chain, its files are private, and frames are kept up to a limit."""

import json
import stat

import pytest
from typer.testing import CliRunner

from privtune.device.account import transcript as transcript_module
from privtune.device.account.transcript import Transcript, describe
from privtune.device.account.verify import check, read_run
from privtune.device.cli import app
from privtune.shared.wire import STEP, FrameWriter, Message
from privtune.split.v1 import split_pb2 as pb

JOB = "ftjob-1"


def send(transcript, count):
    writer = FrameWriter(epoch=1)
    for step in range(count):
        for frame in writer.frames(Message(kind=STEP, step=step)):
            transcript.sent(frame)


def test_a_run_without_a_line_leaves_nothing(tmp_path):
    assert Transcript(tmp_path / "transcript", JOB).close() is None
    assert list(tmp_path.iterdir()) == []


def test_every_file_is_private_and_the_chain_ends_where_close_says(tmp_path):
    transcript = Transcript(tmp_path, JOB, record_frames=True)
    transcript.call("Open", b"request")
    transcript.records("scope", [b"k" * 24])
    send(transcript, 3)
    end = transcript.close()
    lines, hashes, broken = read_run(tmp_path / "0001.jsonl", JOB)
    assert broken is None
    assert (end["lines"], end["chain"]) == (len(lines), hashes[-1])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".frames", ".jsonl", ".keys"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())


def test_frames_are_kept_up_to_the_limit_and_a_note_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(transcript_module, "FRAMES_MAX_BYTES", 40)
    transcript = Transcript(tmp_path, JOB, record_frames=True)
    send(transcript, 10)
    transcript.close()
    found = check(JOB, tmp_path, [], tmp_path / "releases.sqlite")
    assert 0 < found.kept < 10
    assert found.frames["up STEP"] == 10
    assert (tmp_path / "0001.frames").stat().st_size <= 40
    assert "run 0001: the size limit is reached: no more frames are kept" in found.notes
    assert found.problems == []


@pytest.mark.parametrize("came", [(0, 2), (0, 0, 1), (1, 0)], ids=["lost", "twice", "swapped"])
def test_what_the_cloud_leaves_out_is_a_note_and_what_the_device_does_a_problem(tmp_path, came):
    frames = [
        frame for step in range(3) for frame in FrameWriter(epoch=1, seq=step).frames(Message(kind=STEP, step=step))
    ]
    for name in ("received", "sent"):
        transcript = Transcript(tmp_path / name, JOB)
        for number in came:
            getattr(transcript, name)(frames[number])
        transcript.close()
    down, up = (check(JOB, tmp_path / name, [], tmp_path / "releases.sqlite") for name in ("received", "sent"))
    assert down.problems == []
    assert "from the cloud did not come" in " ".join(down.notes)
    assert "is missing" in " ".join(up.problems)


def test_what_verify_finds_is_printed_as_json(tmp_path):
    transcript = Transcript(tmp_path / "jobs" / JOB / "transcript", JOB)
    send(transcript, 3)
    transcript.close()
    done = CliRunner().invoke(app, ["transcript", "verify", JOB, "--json", "--home", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["frames"] == {"up STEP": 3}
    assert found["problems"] == []


def test_lines_and_frames_that_a_loss_of_power_took_are_no_problem(tmp_path):
    transcript = Transcript(tmp_path, JOB, record_frames=True)
    send(transcript, 10)
    end = transcript.close()
    log, frames = tmp_path / "0001.jsonl", tmp_path / "0001.frames"
    whole, middle = log.read_bytes(), frames.stat().st_size // 2
    frames.write_bytes(frames.read_bytes()[:middle])
    for left in (b"", whole[:-100], whole[:1000] + bytes(200) + whole[1200:]):
        log.write_bytes(left)
        found = check(JOB, tmp_path, [], tmp_path / "releases.sqlite")
        assert found.problems == []
        assert "power was lost" in " ".join(found.notes)
        ended = check(JOB, tmp_path, [{"kind": "transcript", "job": JOB, **end}], tmp_path / "releases.sqlite")
        assert ended.problems, "a run that ended was flushed"
    log.write_bytes(whole)
    found = check(JOB, tmp_path, [], tmp_path / "releases.sqlite")
    assert found.problems == []
    assert 0 < found.kept < 10


def test_a_kind_and_a_codec_without_a_name_are_described_by_their_numbers():
    facts = describe(pb.Frame(kind=99, tensor=pb.TensorMeta(codec=77)), "received")
    assert (facts["kind"], facts["codec"]) == ("99", "77")

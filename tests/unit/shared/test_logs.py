"""Log lines: two forms of one record, bounded, without keys, in files that end."""

import json
import logging
import stat
import sys

import pytest

from privtune.shared import logs
from privtune.shared.errors import StorageFull
from privtune.shared.logs import JsonFormatter, KeyValueFormatter, configure_logging
from privtune.shared.wire import FORWARD, Message

KEY = "pt-" + "Ab3dEf" + "g" * 37


def made(**fields):
    return logging.makeLogRecord({"msg": "a session opens", "levelname": "INFO", "name": "privtune.x", **fields})


@pytest.fixture
def configured():
    root, ours = logging.getLogger(), logging.getLogger("privtune")
    before = root.handlers[:], root.level, ours.level
    yield configure_logging
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_both_forms_have_the_same_fields():
    record = made(job="ftjob-1", step=3, owner="a b")
    line, document = KeyValueFormatter().format(record), json.loads(JsonFormatter().format(record))
    assert line.endswith('level=info logger=privtune.x msg="a session opens" job=ftjob-1 step=3 owner="a b"')
    assert document.pop("time") in line
    assert list(document.items())[3:] == [("job", "ftjob-1"), ("step", 3), ("owner", "a b")]


@pytest.mark.parametrize("formatter", [KeyValueFormatter(), JsonFormatter()])
def test_no_key_and_no_long_value_is_written_whatever_a_caller_passes(formatter):
    try:
        raise ValueError(f"{KEY} {'9, ' * 5000}")
    except ValueError:
        record = made(msg=f"refused {KEY}", header=f"Bearer {KEY}", ids=list(range(5000)), exc_info=sys.exc_info())
    written = formatter.format(record)
    assert KEY not in written
    assert "pt-Ab3dEf" in written
    assert len(written) < 6 * logs.MAX_VALUE
    assert "Traceback" in written


def test_a_json_line_is_one_line_however_its_fields_break():
    try:
        raise ValueError("two\nlines\x1b[2J")
    except ValueError:
        record = made(msg="a\nb", exc_info=sys.exc_info())
    written = JsonFormatter().format(record)
    assert written.isprintable()
    assert json.loads(written)["msg"] == "a\nb"


def test_a_file_is_private_and_gives_way_to_a_new_one(configured, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    monkeypatch.setattr(logs, "FILES_KEPT", 2)
    file = tmp_path / "agent.log"
    configured("debug", "json", file)
    for number in range(100):
        logging.getLogger("privtune.device.agent").debug("step", extra={"step": number})
    logging.getLogger("httpcore").debug("a header")
    logging.getLogger("grpc").debug("a frame")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["agent.log", "agent.log.1", "agent.log.2"]
    for name in names:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert (tmp_path / name).stat().st_size <= 2000
    lines = [json.loads(line) for name in reversed(names) for line in (tmp_path / name).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(100 - len(lines), 100))


def test_a_file_that_can_not_be_written_is_said(configured, tmp_path):
    with pytest.raises(StorageFull, match="Can't write the log"):
        configured("info", "json", tmp_path / "none" / "agent.log")


def test_of_a_message_the_log_has_sizes_and_no_contents():
    said = Message(kind=FORWARD, step=1, rows=2, width=3, codec="fp32", payload=b"x" * 24).facts
    assert said == {
        "kind": "forward",
        "step": 1,
        "micro_batch": 0,
        "rows": 2,
        "width": 3,
        "codec": "fp32",
        "payload_bytes": 24,
    }

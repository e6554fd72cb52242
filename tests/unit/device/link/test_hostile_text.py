"""What a hostile cloud writes into errors, events and fields never reaches the owner's terminal as it is."""

import logging
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from privtune.device.cli.error_report import report
from privtune.device.link.rest import ControlPlane
from privtune.device.link.rpc import GatewayAccess, Link
from privtune.shared.errors import InternalError, PrivTuneError
from privtune.shared.logs import KeyValueFormatter
from privtune.shared.metadata import REASON
from privtune.split.v1 import split_pb2 as pb
from privtune.split.v1 import split_pb2_grpc

KEY = "pt-" + "k" * 40
HOSTILE = "x\x1b]52;c;cm0gLXJmIH4=\x07\x1b[2J\x9b1m\u202ey"


class Hostile(split_pb2_grpc.SplitServiceServicer):
    reason = ()

    def Open(self, request, context):
        context.set_trailing_metadata(self.reason)
        context.abort(grpc.StatusCode.UNAVAILABLE, HOSTILE)


@pytest.mark.parametrize("reason", [(), ((REASON, "JOB_CONFLICT"),), ((REASON, "NEW"),)])
def test_errors_of_grpc(reason):
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = Hostile()
    servicer.reason = reason
    split_pb2_grpc.add_SplitServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            Link(GatewayAccess(address=f"127.0.0.1:{port}", api_key=KEY)) as link,
            pytest.raises(PrivTuneError) as caught,
        ):
            link.open(pb.OpenRequest())
    finally:
        server.stop(None)
    assert (caught.value.message + caught.value.detail).isprintable()


def test_fields_and_events_of_rest(canned):
    job = {"id": "ftjob-1", "status": HOSTILE, "model": HOSTILE, "error": {"message": HOSTILE}, HOSTILE: [HOSTILE]}
    with ControlPlane(canned(200, job).url, KEY) as control:
        found = control.get_job("ftjob-1")
    assert "".join([*found, found["status"], found["model"], found["error"]["message"]]).isprintable()
    with ControlPlane(canned(200, {"data": [{"id": "1", "message": HOSTILE}]}).url, KEY) as control:
        assert control.events("ftjob-1")[0]["message"].isprintable()


@pytest.mark.parametrize(("status", "code"), [(409, "JOB_CONFLICT"), (404, "NOT_FOUND"), (503, HOSTILE)])
def test_errors_of_rest(canned, status, code):
    named = {"error": {"message": HOSTILE, "code": code, "param": HOSTILE}}
    with ControlPlane(canned(status, named).url, KEY) as control, pytest.raises(PrivTuneError) as caught:
        control.get_job("ftjob-1")
    assert (caught.value.message + (caught.value.param or "") + caught.value.detail).isprintable()


@pytest.mark.parametrize("debug", [False, True])
def test_whatever_an_error_quotes_its_line_is_printable(capsys, debug):
    report(InternalError(f"the model says {HOSTILE}", detail=HOSTILE), debug=debug)
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_a_path_in_the_clouds_log_is_escaped():
    record = logging.makeLogRecord({"msg": "request", "levelname": "INFO", "path": "/a\x1b]52;c;eA==\x07", "msecs": 0})
    line = KeyValueFormatter().format(record)
    assert line.isprintable()
    assert "\\x1b]52" in line
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert KeyValueFormatter().format(record).replace("\n", "").isprintable()

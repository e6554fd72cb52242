import pickle

import grpc
import pytest

from shared.errors import InternalError, PrivTuneError, all_errors, by_reason


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.reason)
def test_each_row_is_whole(kind):
    assert hasattr(grpc.StatusCode, kind.grpc_status)
    assert 400 <= kind.http_status < 600
    assert 0 < kind.exit_code < 256
    assert kind.help.endswith(".")
    assert kind.reason.isupper()
    assert kind.reason in {"INTERNAL"} or kind.reason != PrivTuneError.reason
    assert f"- {kind.__name__} " in __import__("shared.errors", fromlist=["x"]).__doc__


def test_reasons_are_unique():
    reasons = [kind.reason for kind in all_errors()]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.reason)
def test_errors_survive_pickling_and_the_wire(kind):
    error = pickle.loads(pickle.dumps(kind("what happened", detail="why", param="cut")))
    assert (type(error), str(error), error.detail, error.param) == (kind, "what happened", "why", "cut")
    assert type(by_reason(kind.reason, "x")) is kind


def test_an_unknown_reason_is_an_internal_error():
    assert isinstance(by_reason("FROM_THE_FUTURE", "x"), InternalError)

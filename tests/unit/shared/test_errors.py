import pickle
import subprocess
import sys

import grpc
import pytest

from privtune.shared.errors import InternalError, InvalidInput, PrivTuneError, all_errors, by_reason, missing_package


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.reason)
def test_each_row_is_whole(kind):
    assert hasattr(grpc.StatusCode, kind.grpc_status)
    assert 400 <= kind.http_status < 600
    assert 0 < kind.exit_code < 256
    assert kind.help.endswith(".")
    assert kind.reason.isupper()
    assert kind.reason in {"INTERNAL"} or kind.reason != PrivTuneError.reason
    assert f"- {kind.__name__} " in __import__("privtune.shared.errors", fromlist=["x"]).__doc__


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


@pytest.mark.parametrize("name", ["privtune.device.new", "privtune.cloud", "privtune", "privtune.split", None])
def test_a_missing_module_of_ours_is_a_defect_and_no_missing_package(name):
    assert missing_package(ModuleNotFoundError(name=name), "device") is None


@pytest.mark.parametrize(
    ("module", "arguments", "package"),
    [
        ("privtune.device.cli", ["jobs", "list", "--cloud", "x"], "httpx"),
        ("privtune.cloud.cli", ["keys", "list"], "sqlalchemy"),
    ],
)
def test_a_command_without_its_sides_packages_says_what_to_install(module, arguments, package, tmp_path):
    code = f"import sys; sys.modules[{package!r}] = None; from {module} import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    extra = module.split(".")[1]
    assert done.returncode == InvalidInput.exit_code
    assert done.stderr.count("\n") == 1
    assert f"needs the package {package}: pip install '.[{extra}]'" in done.stderr

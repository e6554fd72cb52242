"""`privtune-cloud` as whole processes: serve, its mistakes, its other commands."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import grpc
import httpx
import pytest

from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.cloud.jobs.service import Jobs
from tests.support.builders import least_spec
from tests.support.plane import read_stream
from tests.support.world import ProcessCloud, ended_clouds

MINIMAL = """
import asyncio, sys
from pathlib import Path
import grpc
from privtune.cloud.catalog import Catalog
from privtune.cloud.server.plane import open_plane
from privtune.cloud.server import server
from privtune.cloud.server.server import serve, write_ready_file
from privtune.cloud.settings import Settings

class Gateway:
    def __init__(self, jobs): self.jobs = jobs
    async def shutdown(self):
        print("gateway shut down", flush=True)
        await asyncio.sleep(float(sys.argv[3]))
    def check_ready(self): pass
    def drop_packages(self, unused_since): return 0
    def load(self): pass
    def waiting(self): return {}

def build(settings, jobs, keys, devices, teachings):
    return grpc.aio.server(options=[("grpc.so_reuseport", 0)]), Gateway(jobs)

folder, ready = Path(sys.argv[1]), Path(sys.argv[2])
server.DRAIN_S = 3.0
settings = Settings(data_folder=folder, http_port=0, grpc_port=0)
with open_plane(settings, Catalog()) as plane:
    print("ready", plane.keys.create("alice").secret, flush=True)
    asyncio.run(serve(settings, plane, on_ready=lambda a: write_ready_file(ready, a), build_gateway=build))
"""


def start(command, ready, **kwargs):
    ready.unlink(missing_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    deadline = time.monotonic() + 90
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate())
        time.sleep(0.02)
    return process, json.loads(ready.read_text())


def minimal(tmp_path, drains_s=0):
    tmp_path.mkdir(exist_ok=True)
    ready = tmp_path / "ready.json"
    process, addresses = start(
        [sys.executable, "-c", MINIMAL, str(tmp_path / "data"), str(ready), str(drains_s)], ready
    )
    return process, addresses, process.stdout.readline().split()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_servers_gracefully_even_with_an_open_stream(tmp_path, number):
    process, addresses, key = minimal(tmp_path)
    socket.create_connection(("127.0.0.1", addresses["grpc_port"])).close()
    store = Store(sqlite_url(tmp_path / "data" / "cloud.sqlite"))
    job_id = Jobs(store).create("alice", least_spec()).id
    path = f"{addresses['url']}/v1/fine_tuning/jobs/{job_id}/events/stream"
    with httpx.stream("GET", path, headers={"Authorization": f"Bearer {key}"}, timeout=20) as stream:
        events = read_stream(stream)  # kept: a dropped iterator closes the connection
        next(events)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    store.close()
    assert process.returncode == 0, err
    assert time.monotonic() - began < 10
    assert "gateway shut down" in out
    assert "Traceback" not in err


def test_a_drain_that_does_not_end_is_cut_off_and_a_second_signal_does_so_at_once(tmp_path):
    for number, (signals, code) in enumerate([([signal.SIGTERM], 1), ([signal.SIGTERM, signal.SIGINT], 130)]):
        process, addresses, _ = minimal(tmp_path / str(number), drains_s=600)
        process.send_signal(signals[0])
        while "shut down" not in process.stdout.readline():
            pass
        assert httpx.get(f"{addresses['url']}/healthz").status_code == 200, "it lives until it ends"
        for another in signals[1:]:
            process.send_signal(another)
        process.communicate(timeout=30)
        assert process.returncode == code


def cloud(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PRIVTUNE")}
    return subprocess.run(
        [sys.executable, "-m", "privtune.cloud.cli", *arguments],
        env=clean | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_second_cloud_on_the_same_data_and_a_taken_port_are_told_in_one_line(tmp_path):
    process, addresses, _ = minimal(tmp_path)
    try:
        same = cloud("serve", "--data", str(tmp_path / "data"), "--port", "0", "--grpc-port", "0")
        assert same.returncode == 2
        assert same.stderr.strip().splitlines()[-1].startswith("privtune-cloud: Another privtune-cloud serves")
        port = str(addresses["http_port"])
        taken = cloud("serve", "--data", str(tmp_path / "other"), "--port", port, "--grpc-port", "0")
        assert taken.returncode == 12
        assert f"Port {port} of 127.0.0.1 is taken; choose another with --http-port." in taken.stderr
        port = str(addresses["grpc_port"])
        taken = cloud("serve", "--data", str(tmp_path / "other"), "--port", "0", "--grpc-port", port)
        assert taken.returncode == 12
        assert "--grpc-port" in taken.stderr
        assert "Traceback" not in same.stderr + taken.stderr
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "--tls-auto"),
        (["--tls-name", "x"], 2, "--tls-auto"),
        (["--tls-cert", "x"], 2, "go together"),
        (["--tls-auto", "--tls-name", "a b"], 2, "host name"),
        (["--log-level", "loud"], 2, "--log-level"),
        (["--http-port", "99999"], 2, "65535"),
        (["--model", "/no/such"], 4, "/no/such"),
        (["--database-url", "nonsense"], 2, "--database-url"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_mistakes_of_the_operator_end_in_one_clear_line(tmp_path, arguments, code, words):
    done = cloud("serve", "--data", str(tmp_path / "data"), *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = cloud("serve", "--data", str(tmp_path / "file"))
    assert done.returncode == 13
    assert "Traceback" not in done.stderr


def test_keys_are_made_listed_and_revoked_from_the_command_line(tmp_path):
    data = {"PRIVTUNE_CLOUD_DATA": str(tmp_path / "data")}
    (tmp_path / "data").mkdir()
    assert "No key yet" in cloud("keys", "list", **data).stdout
    secret = cloud("keys", "create", "--owner", "alice", "--label", "laptop", **data).stdout.strip()
    assert secret.startswith("pt-")
    listed = cloud("keys", "list", **data).stdout
    assert "alice" in listed
    assert secret not in listed
    identity = next(word for word in listed.split() if word.startswith("key-"))
    assert cloud("keys", "revoke", identity, **data).returncode == 0
    assert "revoked" in cloud("keys", "list", **data).stdout
    assert cloud("keys", "revoke", "key-none", **data).returncode == 5
    assert "revision" in cloud("db", "upgrade", **data).stdout


def test_help_teaches_and_is_quick():
    for arguments in (["--help"], ["serve", "--help"], ["keys", "create", "--help"], ["certs", "create", "--help"]):
        times = []
        for _ in range(3):
            # Processor time, not the clock: a busy machine must not fail this.
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = cloud(*arguments)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        assert "privtune-cloud" in done.stdout
        assert min(times) < 0.5
    assert "PRIVTUNE_CLOUD_HTTP_PORT" in cloud("serve", "--help").stdout


def test_the_real_cloud_serves_both_doors_over_tls_from_environment_alone(tmp_path):

    ready, secret = tmp_path / "ready.json", "pt-" + "s3" * 20
    environment = {
        "DATA": str(tmp_path / "data"),
        "HTTP_PORT": "0",
        "GRPC_PORT": "0",
        "DEVICE_PORT": "0",
        "TLS_AUTO": "1",
        "TLS_NAMES": "cloud.lan",
        "TLS_CA_OUT": str(tmp_path / "shared" / "ca.pem"),
        "BOOTSTRAP_KEY": secret,
        "READY_FILE": str(ready),
    }
    named = {f"PRIVTUNE_CLOUD_{name}": value for name, value in environment.items()}
    process, addresses = start([sys.executable, "-m", "privtune.cloud.cli", "serve"], ready, env=os.environ | named)
    try:
        ca = str(tmp_path / "shared" / "ca.pem")
        assert addresses["url"].startswith("https://")
        info = httpx.get(
            f"{addresses['url']}/v1/privtune/info", verify=ca, headers={"Authorization": f"Bearer {secret}"}
        )
        assert (info.json()["tls"], info.json()["grpc_port"]) == (True, addresses["grpc_port"])
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{addresses['url']}/healthz")
        credentials = grpc.ssl_channel_credentials((tmp_path / "shared" / "ca.pem").read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{addresses['grpc_port']}", credentials) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
    finally:
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert secret not in out + err
    assert "No API key yet" not in out
    assert "ca.pem" in out


def test_a_crash_in_a_library_leaves_its_stack_in_the_log(tmp_path):
    """And a test that fails because its cloud has ended says so."""
    cloud = ProcessCloud(tmp_path / "cloud", {})
    cloud.process.send_signal(signal.SIGSEGV)
    assert cloud.process.wait(10) == -signal.SIGSEGV
    (told,) = [one for one in ended_clouds() if str(tmp_path) in one]
    assert "ended with -11" in told
    assert "Fatal Python error: Segmentation fault" in told
    assert "server.py" in told

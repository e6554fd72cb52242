"""Artifacts in a folder and in a bucket: kept whole, found by every process, gone when removed."""

import shutil
import time

import pytest

from privtune.cloud.jobs.deletions import Deletions
from privtune.cloud.jobs.job_files import JobFiles, Kept
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.storage import ArtifactStore, open_artifacts
from privtune.shared.errors import ArtifactCorrupt, CloudUnreachable, InvalidInput
from tests.support.s3 import KEY, SECRET


@pytest.fixture
def url(s3):
    return s3.bucket()


@pytest.fixture
def bucket(url, tmp_path):
    return open_artifacts(tmp_path / "here", url)


@pytest.fixture
def elsewhere(url, tmp_path):
    """The same bucket from another machine."""
    return open_artifacts(tmp_path / "there", url)


@pytest.fixture(params=["folder", "bucket"])
def artifacts(request, tmp_path):
    return ArtifactStore(tmp_path / "here") if request.param == "folder" else request.getfixturevalue("bucket")


def write(store, unit, **files):
    """A unit on the disk of this process: a folder of files, by paths in which __ separates folders."""
    shutil.rmtree(store.folder / unit, ignore_errors=True)
    for name, content in files.items():
        path = store.folder / unit / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return store.folder / unit


def read(store, unit):
    folder = store.folder / unit
    store.pull(folder)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def stored(s3, url, kind):
    """Paths in the bucket that end like this."""
    return [path for path in s3.files().find(url.removeprefix("s3://")) if path.endswith(kind)]


def test_a_unit_is_kept_measured_and_removed(artifacts):
    unit = write(artifacts, "jobs/a/adapter", weights="12345", config="{}")
    artifacts.push(unit)
    write(artifacts, "jobs/b/adapter", weights="other")
    artifacts.push(artifacts.folder / "jobs/b/adapter")
    assert artifacts.kept(unit)
    assert not artifacts.kept(artifacts.folder / "jobs/a/table")
    assert read(artifacts, "jobs/a/adapter") == {"weights": "12345", "config": "{}"}
    sizes = sorted((path.parts[0], size) for path, size in artifacts.measure(artifacts.folder / "jobs/a"))
    assert sizes == [("adapter", 2), ("adapter", 5)]
    artifacts.remove(artifacts.folder / "jobs/a")
    artifacts.remove(artifacts.folder / "jobs/a")
    assert not artifacts.kept(unit)
    assert not unit.exists()
    assert list(artifacts.measure(artifacts.folder / "jobs/a")) == []
    assert read(artifacts, "jobs/b/adapter") == {"weights": "other"}


def test_another_machine_has_what_was_pushed_and_nothing_else(bucket, elsewhere):
    unit = write(bucket, "c", step_1__state="one", step_1__manifest="m1", step_2__state="two", **{".part": "half"})
    bucket.push(unit)
    assert read(elsewhere, "c") == {"step_1/state": "one", "step_1/manifest": "m1", "step_2/state": "two"}
    bucket.push(write(bucket, "c", step_2__state="two", step_3__state="three"))
    assert read(elsewhere, "c") == {"step_2/state": "two", "step_3/state": "three"}
    elsewhere.push(write(elsewhere, "c", step_3__state="another"))
    assert read(bucket, "c") == {"step_3/state": "another"}, "its own copy was older"
    elsewhere.remove(elsewhere.folder / "c")
    assert read(bucket, "c") == {}
    assert not (bucket.folder / "c").exists()


def test_a_file_alone_is_a_unit(bucket, elsewhere):
    path = bucket.folder / "base.sha256"
    bucket.folder.mkdir()
    path.write_text("abc")
    bucket.push(path)
    elsewhere.pull(elsewhere.folder / "base.sha256")
    assert (elsewhere.folder / "base.sha256").read_text() == "abc"


@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_an_interrupted_push_leaves_is_never_seen(bucket, elsewhere, monkeypatch, call):
    bucket.push(write(bucket, "c", a="1", b="2"))
    count = iter(range(1, 10))

    def dies(method):
        def act(*args):
            if next(count) == call:
                raise OSError("the machine is gone")
            return method(*args)

        return act

    for name in ("put_file", "pipe_file"):
        monkeypatch.setattr(bucket._system, name, dies(getattr(bucket._system, name)))
    with pytest.raises(CloudUnreachable):
        bucket.push(write(bucket, "c", a="3", b="4"))
    assert read(elsewhere, "c") == {"a": "1", "b": "2"}
    assert read(bucket, "c") == {"a": "1", "b": "2"}, "and here, too"
    bucket.push(write(bucket, "c", a="5", b="6"))
    assert read(elsewhere, "c") == {"a": "5", "b": "6"}


def test_what_an_interrupted_push_left_is_swept_and_nothing_else(bucket, elsewhere, monkeypatch):
    bucket.push(write(bucket, "c", a="1", b="2"))
    bucket.push(write(bucket, "d", a="1"))
    with monkeypatch.context() as patch:
        patch.setattr(bucket._system, "pipe_file", lambda *_: (_ for _ in ()).throw(OSError("the machine is gone")))
        with pytest.raises(CloudUnreachable):
            bucket.push(write(bucket, "c", a="3", b="2"))
        with pytest.raises(CloudUnreachable):
            bucket.push(write(bucket, "never", a="4"))
    assert len(bucket._names(bucket._key(bucket.folder / "c"))) == 4
    assert elsewhere.drop_unnamed(time.time() - 3600) == 0, "somebody may be writing it right now"
    assert elsewhere.drop_unnamed(time.time() + 3600) == 2
    assert elsewhere.drop_unnamed(time.time() + 3600) == 0
    assert read(elsewhere, "c") == {"a": "1", "b": "2"}
    assert read(elsewhere, "d") == {"a": "1"}
    bucket.push(write(bucket, "c", a="3", b="2"))
    assert read(elsewhere, "c") == {"a": "3", "b": "2"}


def test_old_contents_do_not_stay(bucket, s3, url):
    for content in "123":
        bucket.push(write(bucket, "c", a=content, b="same"))
    assert len(stored(s3, url, "")) == 3, "an index and two files"


def test_a_damaged_file_is_left_out_and_a_damaged_unit_refused(bucket, elsewhere, s3, url, caplog):
    bucket.push(write(bucket, "c", a="1"))
    (bucket.folder / "base").write_text("abc")
    bucket.push(bucket.folder / "base")
    for path in stored(s3, url, ""):
        if not path.endswith("index.json"):
            s3.files().pipe_file(path, b"rotten")
    assert read(elsewhere, "c") == {}
    assert "damaged" in caplog.text
    with pytest.raises(ArtifactCorrupt, match="base"):
        elsewhere.pull(elsewhere.folder / "base")


def test_a_server_that_is_away_is_unreachable_and_nothing_is_lost(bucket, s3):
    unit = write(bucket, "c", a="1")
    bucket.push(unit)
    s3.down.touch()
    for act in (bucket.push, bucket.pull, bucket.kept, bucket.remove):
        with pytest.raises(CloudUnreachable, match="store of artifacts"):
            act(unit)
    s3.down.unlink()
    assert read(bucket, "c") == {"a": "1"}


def test_an_operator_reads_what_is_wrong(s3, url, tmp_path, monkeypatch):
    open_artifacts(tmp_path, url).reach()
    with pytest.raises(InvalidInput, match="no bucket 'nosuch'"):
        open_artifacts(tmp_path, "s3://nosuch/x").reach()
    s3.refuse_strangers(True)
    try:
        with pytest.raises(InvalidInput, match="AWS_ACCESS_KEY_ID") as refused:
            open_artifacts(tmp_path, url).reach()
    finally:
        s3.refuse_strangers(False)
    assert KEY not in refused.value.message + refused.value.detail
    assert SECRET not in refused.value.message + refused.value.detail
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(CloudUnreachable, match="AWS_ENDPOINT_URL"):
        open_artifacts(tmp_path, url).reach()


@pytest.mark.parametrize("url", ["", "bucket", "s3://", "s3://a/../b", f"s3://{KEY}:{SECRET}@bucket/x", "file:///etc"])
def test_what_is_no_bucket_is_told_so(tmp_path, url):
    with pytest.raises(InvalidInput, match="s3://BUCKET") as refused:
        open_artifacts(tmp_path, url)
    assert SECRET not in refused.value.message


def test_a_deleted_job_leaves_nothing_in_the_bucket_nor_on_any_machine(bucket, elsewhere, sqlite_store, s3, url, spec):
    jobs = Jobs(sqlite_store, files=JobFiles(bucket))
    one, two = (jobs.create("alice", spec).id for _ in range(2))
    for job_id in (one, two):
        bucket.push(write(bucket, f"jobs/{job_id}/checkpoints/{'a' * 32}", step__state="12345"))
        read(elsewhere, f"jobs/{job_id}/checkpoints/{'a' * 32}")
    jobs.cancel(one)
    receipt = jobs.deletions.delete(one, "alice")
    assert receipt.went["checkpoints"] == Kept(count=1, bytes=5)
    assert stored(s3, url, "") == [path for path in stored(s3, url, "") if f"/jobs/{two}/" in path] != []
    assert not (bucket.folder / "jobs" / one).exists()
    Deletions(sqlite_store, JobFiles(elsewhere)).sweep()
    assert [path.name for path in (elsewhere.folder / "jobs").iterdir()] == [two], "the other machine's copy, too"
    assert bucket.kept(bucket.folder / f"jobs/{two}/checkpoints/{'a' * 32}")

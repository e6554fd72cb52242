"""One writer at a time in all processes on one database, so that what was checked still holds when it is changed."""

import concurrent.futures
import threading

import pytest
from sqlalchemy import text

from privtune.cloud.auth import ApiKeys
from privtune.cloud.auth.key_rows import MAX_KEYS
from privtune.cloud.catalog import Catalog
from privtune.cloud.corpora import Corpora
from privtune.cloud.db.store import Store
from privtune.cloud.jobs import homes
from privtune.cloud.jobs.homes import Homes
from privtune.cloud.jobs.service import Jobs
from privtune.cloud.jobs.teachings import Teachings
from privtune.cloud.limits import OwnerLimits
from privtune.cloud.settings import Limits
from privtune.shared.errors import PrivTuneError
from privtune.shared.teaching_spec import TeachingSpec
from tests.support.databases import address
from tests.support.leases import begin

RACERS = 6
ONE = Limits(unfinished_jobs=1)


@pytest.fixture
def stores(store):
    """The database as several processes see it."""
    opened = [Store(address(store)) for _ in range(RACERS)]
    yield opened
    for one in opened:
        one.close()


def race(stores, act):
    """What `act(store, number)` gives in every process at once: its value, or its error."""
    together = threading.Barrier(len(stores))

    def run(number):
        stores[number].ping()  # connected: what follows is the race
        together.wait()
        try:
            return act(stores[number], number)
        except PrivTuneError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(stores)) as threads:
        return list(threads.map(run, range(len(stores))))


def won(results):
    return [result for result in results if not isinstance(result, Exception)]


def test_the_last_unfinished_job_is_created_once(stores, spec):
    made = race(stores, lambda store, number: Jobs(store, limits=OwnerLimits(store, ONE)).create("alice", spec))
    assert len(won(made)) == 1
    assert {type(error).__name__ for error in made if error not in won(made)} == {"PermissionDenied"}


def test_a_repeated_request_creates_one_job(stores, spec):
    made = race(stores, lambda store, number: Jobs(store).create("alice", spec, idempotency_key="k").id)
    assert len(set(made)) == 1


def test_a_job_is_leased_to_one_of_the_devices_that_want_it(stores, store, spec):
    job_id = Jobs(store).create("alice", spec).id
    tokens = race(stores, lambda other, number: begin(Jobs(other), job_id, f"{number:032x}"))
    assert len(won(tokens)) == 1
    assert Jobs(store).get(job_id).status == "running"


def test_sessions_of_one_device_get_different_tokens_and_one_holds(stores, store, spec):
    job_id = Jobs(store).create("alice", spec).id
    tokens = race(stores, lambda other, number: Jobs(other).leases.claim(job_id, "a" * 32))
    assert sorted(tokens) == list(range(1, RACERS + 1))
    reports = race(stores, lambda other, number: Jobs(other).start(job_id, tokens[number]))
    assert [report for report in reports if report in won(reports)] == [reports[tokens.index(RACERS)]]


def test_a_home_is_claimed_once_for_each_count(stores):
    claims = race(stores, lambda store, number: Homes(store).claim("alice", "a" * 32, 1, f"{number:032x}"))
    assert len(won(claims)) == 1


def test_the_last_home_and_the_last_key_are_taken_once(stores, monkeypatch):
    monkeypatch.setattr(homes, "MAX_HOMES", 1)
    claims = race(stores, lambda store, number: Homes(store).claim("alice", f"{number:032x}", 1, "a" * 32))
    assert len(won(claims)) == 1
    monkeypatch.setattr("privtune.cloud.auth.key_rows.MAX_KEYS", 1)
    assert len(won(race(stores, lambda store, number: ApiKeys(store).create("alice")))) == 1
    assert MAX_KEYS > 1


def test_a_key_is_rotated_once(stores, keys):
    key = keys.create("alice").key.id
    assert len(won(race(stores, lambda store, number: ApiKeys(store).rotate(key)))) == 1


def test_limits_of_an_owner_are_set_by_the_last(stores, store):
    done = race(stores, lambda other, number: OwnerLimits(other).set("alice", unfinished_jobs=number + 1))
    assert done == [None] * RACERS
    assert set(OwnerLimits(store).own()) == {"alice"}


def test_a_job_is_deleted_once_with_one_receipt(stores, store, spec):
    jobs = Jobs(store)
    job_id = jobs.create("alice", spec).id
    jobs.cancel(job_id)
    receipts = race(stores, lambda other, number: Jobs(other).deletions.delete(job_id, "alice"))
    assert receipts == [receipts[0]] * RACERS


def test_events_are_numbered_without_a_gap(stores, store, spec):
    job_id = Jobs(store).create("alice", spec).id
    race(stores, lambda other, number: Jobs(other).add_event(job_id, "info", str(number)))
    assert [event.seq for event in Jobs(store).events(job_id).items] == list(range(1, RACERS + 2))


def test_a_teaching_is_made_once_and_claimed_once(stores, model_folder, tmp_path):
    (tmp_path / "reviews.txt").write_text("a fine film\n")
    catalog, corpora = Catalog([f"tiny={model_folder}"]), Corpora([str(tmp_path / "reviews.txt")])
    spec = TeachingSpec(model="tiny", corpus="reviews")
    catalog.cards()  # read before: ast.parse of Python 3.11 is not safe in threads
    made = race(stores, lambda store, number: Teachings(store, catalog, corpora).create("alice", spec).id)
    assert len(set(made)) == 1
    claimed = race(stores, lambda store, number: Teachings(store, catalog, corpora).claim())
    assert [teaching.id for teaching in claimed if teaching is not None] == made[:1]


def test_a_reader_waits_for_no_writer_and_sees_one_state(store, another):
    with store.write() as session:
        session.execute(text("INSERT INTO owners VALUES ('alice', '{}')"))
        with another.read() as reader:
            assert reader.scalar(text("SELECT count(*) FROM owners")) == 0
            session.commit()
            assert reader.scalar(text("SELECT count(*) FROM owners")) == 0, "what it began with"
    with another.read() as reader:
        assert reader.scalar(text("SELECT count(*) FROM owners")) == 1


def test_a_database_of_another_isolation_level_changes_nothing(postgres_store, postgres, spec):
    """An operator's default, under which the winner's change would stay unseen after the lock."""
    name = postgres_store.engine.url.database
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    stores = [Store(address(postgres_store)) for _ in range(RACERS)]
    made = race(stores, lambda store, number: Jobs(store, limits=OwnerLimits(store, ONE)).create("alice", spec))
    assert len(won(made)) == 1
    for store in stores:
        store.close()

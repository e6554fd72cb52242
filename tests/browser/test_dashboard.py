"""The dashboard in a browser: a job that really trains is watched, paused, resumed and cancelled from its page."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from privtune.cloud.auth import ApiKeys
from privtune.cloud.db.database import sqlite_url
from privtune.cloud.db.store import Store
from privtune.shared.errors import JobCancelled, JobPaused
from tests.support.browser import check_looks, log_in
from tests.support.running import run
from tests.support.world import ProcessCloud, Watcher, build_world

STEPS = 40


@pytest.fixture(scope="module")
def world(browser, tmp_path_factory):  # the browser first: without one nothing else starts
    built = build_world(tmp_path_factory.mktemp("dashboard"), ProcessCloud)
    yield built
    built.cloud.stop()


@pytest.fixture(scope="module")
def key(world):
    """Makes keys."""
    store = Store(sqlite_url(world.folder / "cloud" / "cloud.sqlite"))
    yield lambda owner, *scopes: ApiKeys(store).create(owner, "laptop", scopes=scopes).secret
    store.close()


class Device:
    """Trains a job in a thread, as many steps as it is allowed."""

    def __init__(self, world, spec, job_id):
        self._allowed = threading.Semaphore(0)
        self.ended = None
        self._thread = threading.Thread(target=self._run, args=(world, spec, job_id), daemon=True)
        self._thread.start()

    def _run(self, world, spec, job_id):
        watcher = Watcher(at_step=lambda info: self._allowed.acquire(timeout=120))
        try:
            run(world, spec, job_id=job_id, watcher=watcher, settings=world.device(share_figures=True))
        except Exception as error:
            self.ended = error

    def may(self, steps):
        self._allowed.release(steps)

    def wait(self):
        self._allowed.release(10 * STEPS)
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextmanager
def training(world, spec, job_id):
    device = Device(world, spec, job_id)
    try:
        yield device
    finally:
        device.wait()


def test_a_job_is_watched_and_steered(browser, world, key):
    page = log_in(browser, world.cloud.http_url, world.cloud.api_key)
    expect(page.get_by_text("No jobs yet.")).to_be_visible()
    spec = world.spec(train={"max_steps": STEPS}, suffix="reviews")
    job_id = world.cloud.create_job(spec)
    page.get_by_role("link", name="reviews").click()  # it appears by itself
    state = page.locator("#part-status")
    expect(state).to_contain_text("Waiting for its device")

    with training(world, spec, job_id) as device:
        device.may(10)
        expect(state).to_contain_text("Training")
        expect(page.get_by_role("img", name="Received up to step 11")).to_be_visible()
        before = page.locator("#part-curves polyline").nth(1).get_attribute("points")
        device.may(5)
        expect(page.get_by_role("img", name="Received up to step 16")).to_be_visible()
        assert page.locator("#part-curves polyline").nth(1).get_attribute("points") != before
        expect(page.get_by_role("img", name="Loss up to step").first).to_be_visible()
        expect(page.locator("#part-claims")).to_contain_text("What the device claims")
        check_looks(page, "job")

        page.get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        expect(state).to_contain_text("Pausing after this step")
        device.wait()
        expect(state).to_contain_text("Paused by its owner")
        assert isinstance(device.ended, JobPaused)

    page.get_by_role("button", name="Resume").click()
    expect(state).to_contain_text("Waiting for its device")
    with training(world, spec, job_id) as device:
        expect(state).to_contain_text("Training")
        page.get_by_text("Cancel…").click()
        page.get_by_role("button", name="Yes, cancel it").click()
        expect(state).to_contain_text("Ending after this step")
        device.wait()
        assert isinstance(device.ended, JobCancelled)
        expect(state).to_contain_text("Cancelled")

    stranger = log_in(browser, world.cloud.http_url, key("bob", "read", "submit", "admin"))
    expect(stranger.get_by_text("No jobs yet.")).to_be_visible()
    stranger.goto(page.url)
    expect(stranger.get_by_role("alert")).to_contain_text("There is no job")
    assert not page.errors


def test_every_page_is_accessible(browser, world, key):
    url = world.cloud.http_url
    secret = key("carol", "read", "submit", "admin")
    page = browser.new_context().new_page()
    page.goto(url)
    check_looks(page, "login")
    page = log_in(browser, url, secret)
    page.get_by_role("link", name="New job").click()
    check_looks(page, "new")
    page.get_by_label("Data set", exact=True).fill("reviews")
    page.get_by_label("Name of the model").fill("<b>bold</b>")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert")).to_contain_text("suffix")
    page.get_by_label("Name of the model").fill("tickets")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#part-status")).to_contain_text("Waiting for its device")
    page.goto(f"{url}/dashboard/")
    expect(page.get_by_role("link", name="tickets")).to_be_visible()
    check_looks(page, "overview")
    page.goto(f"{url}/dashboard/keys")
    check_looks(page, "keys")
    page.goto(f"{url}/dashboard/devices")
    check_looks(page, "devices")
    page.get_by_role("button", name="Log out").click()
    page.goto(f"{url}/dashboard/keys")
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert all("400 (Bad Request)" in error for error in page.errors)  # of the form that was refused

"""A device with a certificate trains without an API key, renews the certificate by itself, and is shut out at once."""

import time
from dataclasses import replace

import pytest

from privtune.cloud.auth.devices import Devices, Enrolled
from privtune.device.link import gateway
from privtune.device.link.certificates import new_key
from privtune.device.link.identity import load_identity
from privtune.device.link.rpc import Link
from privtune.shared.errors import CloudUnreachable, FrameCorrupt, JobNotFound, Unauthenticated
from tests.support.enrolled import enrolled_settings, resigned
from tests.support.running import once, run, wait_until
from tests.support.sessions import request_for, streaming
from tests.support.world import Watcher

LONG = {"max_steps": 5000, "epochs": 1000, "checkpoint_every": 1000}


def test_a_certificate_is_enough_to_train_and_the_key_stays_at_home(local_world):
    identity, settings = enrolled_settings(local_world)
    _, result = run(local_world, local_world.spec(train={"max_steps": 4}), settings=settings)
    assert result.steps == 4
    (device,) = local_world.cloud.devices.list("alice")
    assert (device.id, device.last_seen_at is None) == (identity.device_id, False)


def test_a_revoked_device_is_out_within_two_seconds_and_its_job_is_free(local_world):
    """While it trains, from another process: nothing but the database says so."""
    identity, settings = enrolled_settings(local_world)
    revoked = []

    def revoke():
        local_world.cloud.devices.revoke(identity.device_id)
        revoked.append(time.monotonic())

    spec = local_world.spec(train=LONG)
    job_id = local_world.cloud.create_job(spec)
    with pytest.raises(Unauthenticated, match="revoked"):
        run(local_world, spec, settings=settings, job_id=job_id, watcher=Watcher(at_step=once({3}, revoke)))
    assert time.monotonic() - revoked[0] < 2
    while local_world.cloud.status(job_id)[0] != "queued":
        assert time.monotonic() - revoked[0] < 5, local_world.cloud.status(job_id)
        time.sleep(0.02)
    assert "revoked" in local_world.cloud.status(job_id)[1]
    with pytest.raises(Unauthenticated, match="privtune enroll"), Link(settings.endpoint) as link:
        link.refuse(job_id, Unauthenticated("x"))
    run(local_world, local_world.spec(train={"max_steps": 2}))  # others are not concerned


def test_a_certificate_renews_itself_at_half_life_while_a_stream_goes_on(local_world, monkeypatch):
    """The stream keeps its connection, calls after it take the new one."""
    monkeypatch.setattr(gateway, "LOOK_S", 0.05)
    spec = local_world.spec()
    job_id = local_world.cloud.create_job(spec)
    old, settings = enrolled_settings(local_world)
    with (
        Link(settings.endpoint) as link,
        streaming(link, request_for(local_world, job_id, spec), patience=0.2) as stream,
    ):
        replace(old, received=time.time() - 0.6 * old.life_s).save(settings.identity)
        wait_until(lambda: load_identity(settings.identity).certificate != old.certificate)
        new = load_identity(settings.identity)
        assert (new.key, new.device_id, new.due) == (old.key, old.device_id, False)
        assert time.time() - new.received < 30
        with pytest.raises(CloudUnreachable, match="sent nothing"):  # it has not ended
            stream.receive()
        link.refuse(local_world.cloud.create_job(spec), JobNotFound("x"))
    assert local_world.cloud.devices.list()[0].expires_at >= time.time() + new.life_s - 30


def test_a_waiting_agent_renews_as_well(local_world):
    _, settings = enrolled_settings(local_world, received=0.0)
    gateway.renew_if_due(settings.identity, lambda: settings.endpoint)
    assert load_identity(settings.identity).due is False
    gateway.renew_if_due(settings.identity, lambda: pytest.fail("it is fresh"))


@pytest.mark.parametrize("clock_ahead_s", [0, 3 * 86400, -3 * 86400])
def test_a_clock_that_is_wrong_locks_no_device_out(local_world, monkeypatch, clock_ahead_s):
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + clock_ahead_s)
    identity, settings = enrolled_settings(local_world)
    monkeypatch.setattr(time, "time", right)
    with Link(settings.endpoint) as link, pytest.raises(JobNotFound):
        link.refuse("ftjob-none", JobNotFound("x"))
    assert load_identity(settings.identity).device_id == identity.device_id


def test_who_was_away_for_too_long_hears_what_to_do(local_world):
    identity, settings = enrolled_settings(local_world)
    late = replace(identity, received=time.time() - identity.life_s - 1)
    resigned(late, local_world.cloud.devices.authority, life_s=-60).save(settings.identity)
    with pytest.raises(Unauthenticated, match=r"ended on .*Ask the cloud's operator for a token"):
        gateway.renew_if_due(settings.identity, lambda: settings.endpoint)
    with Link(settings.endpoint) as link, pytest.raises(Unauthenticated, match="privtune enroll"):
        link.refuse("ftjob-none", JobNotFound("x"))


def test_a_cloud_that_answers_with_another_certificate_does_not_lock_its_device_out(local_world, monkeypatch):
    identity, settings = enrolled_settings(local_world, received=0.0)
    wrong = [
        resigned(replace(identity, key=new_key()), local_world.cloud.devices.authority),
        resigned(identity, local_world.cloud.devices.authority, device_id="dev-other"),
        replace(identity, certificate="-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"),
    ]
    before = settings.identity.read_bytes()
    for one in wrong:
        answer = Enrolled(device=None, certificate=one.certificate.encode(), life_s=3600)
        monkeypatch.setattr(Devices, "renew", lambda *_, answer=answer: answer)
        with pytest.raises(FrameCorrupt, match="nothing was kept"):
            gateway.renew_if_due(settings.identity, lambda: settings.endpoint)
    assert settings.identity.read_bytes() == before

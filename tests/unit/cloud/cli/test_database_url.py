"""`--database-url`: what is wrong is said in one line, and a password never."""

import logging

import pytest

from privtune.cloud.settings import Settings
from tests.support.postgres import PASSWORD, QUOTED


def list_keys(command, monkeypatch, url):
    monkeypatch.setenv("PRIVTUNE_CLOUD_DATABASE_URL", url)
    return command("keys", "list")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h/x",
        "postgresql+psycopg://h/x?user=u&password=hunter2",
        "postgres://h/x?sslpassword=hunter2",
    ],
)
def test_a_password_on_the_command_line_is_refused(command, url):
    code, _, told = command("keys", "list", "--database-url", url)
    assert code == 2
    assert "PRIVTUNE_CLOUD_DATABASE_URL" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@h:80a/x",
        "nosuchdb://u:hunter2@h/x",
        "mysql://u:hunter2@h/x",
        "hunter2",
        "postgresql+asyncpg://u:hunter2@h/x",
    ],
)
def test_an_unusable_url_is_never_repeated(command, monkeypatch, url):
    code, _, told = list_keys(command, monkeypatch, url)
    assert code == 2
    assert "--database-url is not a database URL" in told
    assert "hunter2" not in told


def test_a_server_that_is_not_there_is_named(command, monkeypatch):
    code, _, told = list_keys(command, monkeypatch, "postgresql://u:hunter2@127.0.0.1:1/x")
    assert code == 8
    assert "u@127.0.0.1:1/x" in told
    assert "refused" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("change", "exit_code", "words"),
    [
        ((QUOTED, "hunter2%2Fx"), 8, "password authentication failed"),
        (("/NAME", "/nosuch"), 8, 'database "nosuch" does not exist'),
        (("/NAME", "/nosuch?frobnicate=1"), 2, "frobnicate"),
    ],
)
def test_what_postgres_refuses_is_said_without_the_password(
    command, monkeypatch, postgres, caplog, change, exit_code, words
):
    caplog.set_level(logging.DEBUG)
    code, _, told = list_keys(command, monkeypatch, postgres.url("NAME").replace(*change))
    assert code == exit_code, told
    assert words in told
    assert len(told.splitlines()) == 1
    for secret in (PASSWORD, QUOTED, "hunter2"):
        assert secret not in told + caplog.text


def test_a_command_works_on_postgres_and_its_log_holds_no_password(command, monkeypatch, postgres, caplog):
    caplog.set_level(logging.DEBUG)
    code, _, told = list_keys(command, monkeypatch, postgres.new(empty=True))
    assert code == 0, told
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    bare = postgres.url("postgres").replace(f":{QUOTED}", "")
    monkeypatch.delenv("PRIVTUNE_CLOUD_DATABASE_URL")
    assert command("db", "upgrade", "--database-url", bare)[0] == 0, "without a password it may be on the command line"
    assert PASSWORD not in told + caplog.text
    assert QUOTED not in told + caplog.text


def test_settings_do_not_show_it(tmp_path):
    assert "hunter2" not in repr(Settings(data_folder=tmp_path, database_url="postgresql://u:hunter2@h/x"))

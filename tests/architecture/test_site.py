"""The documentation's site builds, a broken link fails it, nothing comes from elsewhere, and the reference is whole."""

import re
from pathlib import Path

import pytest

from privtune.shared.errors import all_errors
from privtune.shared.job_spec import JobSpec
from scripts.build_site import build, stage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    stage(folder)
    assert build(folder) == 0
    return folder


def page(out, name):
    return (out / "site-src" / name).read_text(encoding="utf-8")


def test_every_page_is_there_and_the_menu_names_real_ones(out):
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "THREAT_MODEL.md"]
    assert all(
        (out / "site" / one.relative_to(ROOT).with_suffix(".html")).exists() or one.stem == "README" for one in pages
    )
    home = (out / "site" / "index.html").read_text(encoding="utf-8")
    named = {one.stem.replace("README", "index") for one in (ROOT / "docs").glob("*.md")}
    assert [one for one in named if f"docs/{one}.html" not in home] == []
    menu = re.findall(r'= "([\w/.-]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert len(menu) > 40
    assert [one for one in menu if not (out / "site-src" / one).exists()] == []


def test_nothing_comes_from_elsewhere(out):
    foreign = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
    html = [*(out / "site").rglob("*.html")]
    assert html
    assert [one.name for one in html if foreign.search(one.read_text(encoding="utf-8"))] == []


def test_a_link_that_leads_nowhere_fails_the_build(out):
    target = out / "site-src" / "docs" / "faq.md"
    before = target.read_text(encoding="utf-8")
    try:
        target.write_text(before + "\nSee [nothing](nowhere.md).\n", encoding="utf-8")
        assert build(out) != 0
    finally:
        target.write_text(before, encoding="utf-8")


def test_the_reference_has_every_command_route_key_and_error(out):
    from scripts.reference import openapi

    commands = page(out, "docs/reference/privtune.md")
    for name in ("finetune", "jobs delete", "home encrypt", "serve"):
        assert f"## privtune {name}\n" in commands
    assert "`--learning-rate`" in commands
    assert "`PRIVTUNE_API_KEY`" in commands
    assert "## privtune-cloud limits set\n" in page(out, "docs/reference/privtune-cloud.md")
    rest = page(out, "docs/reference/rest.md")
    for path, operations in openapi()["paths"].items():
        for method in operations:
            assert f"## {method.upper()} {path}\n" in rest
    settings = page(out, "docs/reference/settings.md")
    assert all(f"`{name}`" in settings or f"`{name}." in settings for name in JobSpec.model_fields)
    errors = page(out, "docs/reference/errors.md")
    assert all(f"| `{kind.reason}` | {kind.exit_code} | {kind.http_status} |" in errors for kind in all_errors())

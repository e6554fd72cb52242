"""Build the documentation's site: the repository's own pages in their folders, and a reference made from the code.

Pages stay where they are and link to each other as on disk; the site has the same tree, so that no link is rewritten.
Anything that a link can't reach ends the build (`zensical build --strict`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.reference import pages

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s#]+)")
_FOLDER = re.compile(r"\]\(((?:docs/)?results/)\)")  # a list of what is there takes its place
_TITLE = re.compile(r"^# +(.+)$", re.MULTILINE)


def stage(out: Path) -> None:
    """Copy the settings into `out`; every page, every other file that one links to, and the reference, below it."""
    sources = out / "site-src"
    shutil.rmtree(sources, ignore_errors=True)
    sources.mkdir(parents=True)
    listed = subprocess.run(
        ("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    (out / "zensical.toml").write_text(_menu(listed), encoding="utf-8")
    for page in map(Path, listed):
        text = (ROOT / page).read_text(encoding="utf-8")
        _write(sources / page, _FOLDER.sub(r"](\1index.md)", text))
        for link in LINK.findall(text):
            linked = (ROOT / page.parent / link).resolve() if ":" not in link else ROOT
            if linked.is_file() and linked.suffix != ".md":
                target = sources / linked.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(linked, target)
    _write(sources / "docs/results/index.md", _results([page for page in listed if page.startswith("docs/results/")]))
    for name, text in pages().items():
        _write(sources / "docs/reference" / name, text)


def build(out: Path) -> int:
    """Make the site `out`/site of what is staged; the exit code is zensical's, not 0 for a link that leads nowhere."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=out, check=False).returncode


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def _menu(listed: list[str]) -> str:
    """The settings, with the pages of docs/ that their menu does not name under "More"."""
    settings = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    more = [page for page in listed if re.fullmatch(r"docs/[^/]+\.md", page) and f'"{page}"' not in settings]
    entries = "".join(f'    {{ "{_title(page)}" = "{page}" }},\n' for page in more)
    group = f'  {{ "More" = [\n{entries}  ] }},\n' if more else ""
    return settings.replace("\n]\n\n[project.theme]", f"\n{group}]\n\n[project.theme]", 1)


def _title(page: str) -> str:
    title = _TITLE.search((ROOT / page).read_text(encoding="utf-8"))
    return title[1] if title else Path(page).stem


def _results(results: list[str]) -> str:
    lines = ["# Results", "", "For whoever wants to check a figure: every result with the command that made it.", ""]
    for page in sorted(results):
        lines.append(f"* [{_title(page)}]({Path(page).name})")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Stage and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder of the result")
    out = parser.parse_args().out
    stage(out)
    sys.exit(build(out))


if __name__ == "__main__":
    main()

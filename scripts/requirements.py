"""Print requirements of pyproject.toml, one a line, for `pip install -r`.

`python scripts/requirements.py demo` prints what the extra adds; `--base` puts PrivTune's own dependencies before it.
Images and the Makefile use it to install what changes seldom in a step of its own.
"""

import argparse
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main() -> None:
    """Print the requirements that the arguments name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    parser = argparse.ArgumentParser(description="Print requirements of pyproject.toml, one a line.")
    parser.add_argument("extras", nargs="+", choices=sorted(extras), metavar="EXTRA", help=", ".join(extras))
    parser.add_argument("--base", action="store_true", help="PrivTune's own dependencies first")
    args = parser.parse_args()
    lines = project["dependencies"] if args.base else []
    print(*lines, *(line for name in args.extras for line in extras[name]), sep="\n")


if __name__ == "__main__":
    main()

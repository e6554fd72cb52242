"""Print the requirements of one extra of pyproject.toml, one a line: `python scripts/extra.py demo`."""

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def main(extra: str) -> None:
    """Print the requirements that `pip install privtune[extra]` would add to the base ones."""
    extras: dict[str, list[str]] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    if extra not in extras:
        sys.exit(f"no extra {extra!r} in pyproject.toml; it has: {', '.join(extras)}")
    print(*extras[extra], sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/extra.py EXTRA")
    main(sys.argv[1])

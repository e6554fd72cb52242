from pathlib import Path

from privtune.shared.errors import all_errors

PAGE = Path(__file__).parents[3] / "docs" / "exit-codes.md"


def test_the_page_says_what_the_table_says():
    rows = {line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line}
    assert rows == {f"| {kind.exit_code} | `{kind.reason}` | {kind.help} |" for kind in all_errors()}

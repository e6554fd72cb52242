"""Tables of the command line: every row is one line in a pipe, and nothing from elsewhere styles a terminal."""

import io

from privtune.device.cli.printing import print_facts, print_table


def lines_of(*arguments, **more):
    out = io.StringIO()
    print_table(*arguments, stream=out, **more)
    return out.getvalue().splitlines()


def test_columns_are_aligned_and_lines_have_no_trailing_spaces():
    assert lines_of([("a", "7", "x"), ("long", "12", "")], ("NAME", "N", "REST"), numbers=(1,)) == [
        "NAME   N  REST",
        "a      7  x",
        "long  12",
    ]


def test_without_rows_nothing_is_printed():
    assert lines_of([], ("NAME",)) == []


def test_a_pipe_gets_whole_rows_and_no_markup():
    cells = ("word " * 100, "[bold]:skull:[/bold]")
    assert lines_of([cells]) == ["  ".join(cells)]


def test_facts_are_aligned_and_those_left_out_take_no_line(capsys):
    print_facts({"job": "ftjob-1", "error": None, "status": "queued"})
    assert capsys.readouterr().out == "job:     ftjob-1\nstatus:  queued\n"

"""Small words of English that are part of no name: articles, pronouns, prepositions, auxiliaries."""

from __future__ import annotations

CLOSED = frozenset(
    """
    a an the this that these those my our your his her their its at by to from in on of for and with or but is are was
    were be been i you he she it we they who what which not no so if as do does did has have had would can could when
    where how all any some more most other out up about than then there here very just also only them him us me
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)

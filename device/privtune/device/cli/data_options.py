"""The options that name columns of the owner's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from privtune.device.cli.option_groups import OptionGroup
from privtune.device.cli.options import DATA, option

if TYPE_CHECKING:
    from privtune.device.data.records import Columns

TextColumn = Annotated[str | None, option("Column of the text. Default: found by the header.", DATA)]

OwnTerms = Annotated[
    str | None,
    option("File with words and phrases that surrogates always replace, one a line. It never leaves.", DATA),
]


@dataclass(frozen=True, kw_only=True)
class TextColumns(OptionGroup):
    """Columns of texts without labels."""

    text_column: TextColumn = None
    text2_column: Annotated[str | None, option("Column of the second text, for pairs.", DATA)] = None

    def columns(self) -> Columns:
        """The columns as the readers of data take them; those left out are found by the header."""
        from dataclasses import asdict

        from privtune.device.data.records import Columns

        given = {name: value for name, value in asdict(self).items() if name.endswith("_column")}
        return Columns(**{name.removesuffix("_column"): value for name, value in given.items()})


@dataclass(frozen=True, kw_only=True)
class LabelledColumns(TextColumns):
    """Columns of labelled texts."""

    label_column: Annotated[str | None, option("Column of the label. Default: found by the header.", DATA)] = None


@dataclass(frozen=True, kw_only=True)
class RecordColumns(LabelledColumns):
    """Columns of records for any task."""

    prompt_column: Annotated[str | None, option("Column of the prompt (causal-lm).", DATA)] = None
    completion_column: Annotated[str | None, option("Column of the completion (causal-lm).", DATA)] = None
    messages_column: Annotated[
        str | None, option("Column of conversations: lists of role and content (causal-lm).", DATA)
    ] = None

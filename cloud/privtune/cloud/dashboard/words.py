"""What a job's state and settings mean, in words for its owner."""

from __future__ import annotations

from typing import Any, NamedTuple

HEADLINES = {
    ("queued", "waiting_for_device"): "Waiting for its device",
    ("running", "training"): "Training",
    ("running", "pausing"): "Pausing after this step",
    ("running", "cancelling"): "Ending after this step",
    ("paused", "held"): "Paused by its owner",
    ("paused", "waiting_for_device"): "Waiting for its device to come back",
    ("succeeded", "done"): "Finished",
    ("failed", "failed"): "Failed",
    ("cancelled", "cancelled"): "Cancelled",
}
TONES = {"queued": "wait", "running": "go", "paused": "wait", "succeeded": "good", "failed": "bad", "cancelled": "off"}


class Fact(NamedTuple):
    """What the cloud can or can't see of a job, by its settings. tone: `good`, `wait` or `bad`."""

    about: str
    text: str
    tone: str


def what_leaves(spec: dict[str, Any]) -> list[Fact]:
    """What a job's settings let the cloud see. No more than they say: figures are the device's to give."""
    return [_words(spec), _labels(spec), Fact("Always visible", _ALWAYS, "wait")]


_ALWAYS = "How many records there are, how many tokens each has, when they come, and all settings of this job."


def _words(spec: dict[str, Any]) -> Fact:
    noise, replaced = spec["mechanism"]["name"], spec["surrogates"]["replace"] != "nothing"
    if noise != "none":
        params = ", ".join(f"{name} {value}" for name, value in sorted(spec["mechanism"]["params"].items()))
        text = f"The device adds noise ({noise}{': ' + params if params else ''}) to every vector before it leaves."
        text += " Names, numbers and rare words are replaced first." if replaced else ""
        text += " How much can still be read depends on its strength: audit it on the device."
        return Fact("Words", text, "wait")
    if replaced:
        return Fact(
            "Words",
            "Names, places, organisations, numbers, dates, addresses and rare words are replaced on the device. All "
            "other words can be read here.",
            "wait",
        )
    return Fact("Words", "Nothing is replaced and no noise is added: every word can be read here.", "bad")


def _labels(spec: dict[str, Any]) -> Fact:
    language = spec["task"] == "causal-lm"
    if spec["labels"] == "shared":
        return Fact("Labels", "They are sent to the cloud as they are.", "bad")
    if spec["tail"]:
        return Fact("Labels", "They stay on the device, which trains the last blocks; no gradient leaves.", "good")
    if spec["zeroth_order"]["epsilon"] is not None:
        bound = f"{spec['zeroth_order']['epsilon']:g}"
        return Fact("Labels", f"No gradient leaves; one noised number a step, epsilon {bound} for all of them.", "good")
    if spec["label_epsilon"] is not None:
        bound = f"{spec['label_epsilon']:g}"
        return Fact("Labels", f"Randomised on the device, so gradients reveal at most {bound} nats of each.", "wait")
    what = "a language model's labels are the words that the cloud gets" if language else "they reveal labels"
    return Fact("Labels", f"They stay on the device, but gradients leave, and {what}.", "wait")

"""What the cloud can read of a job, in three lines: its text, its labels, and the rest. Settings decide, not names."""

from __future__ import annotations

from privtune.device.protections.measured import measured_job
from privtune.shared.job_spec import JobSpec


def what_the_cloud_reads(spec: JobSpec) -> tuple[str, str, str]:
    """One line each for the text, for labels and gradients, and for what no setting hides."""
    return f"Text: {_text(spec)}", f"Labels: {_labels(spec)}", f"Always: {_always(spec)}"


def _text(spec: JobSpec) -> str:
    replaced = (
        "names, places, organisations, numbers, dates, addresses, words of no dictionary and words rarer than the "
        f"{spec.surrogates.rank:,} most common are replaced by random ones of the same kind"
    )
    if spec.mechanism.name == "none":
        if spec.surrogates.on:
            return f"the cloud can read every word that is not replaced; {replaced}."
        return "the cloud can read nearly every word: nothing is replaced, and vectors leave without noise."
    row = measured_job(spec)
    if row is None or row.named is None:
        share = "how many words an attacker names from them is not measured (`privtune audit` measures it)"
    else:
        share = (
            f"attackers who know the mechanism named {row.named[0]:.1%} of all words and {row.named[1]:.1%} of "
            f"content words ({row.where}; attackers with more text name more)"
        )
    first = f"{replaced}; " if spec.surrogates.on else ""
    return f"{first}vectors leave through `{spec.mechanism.name}`; {share}."


def _labels(spec: JobSpec) -> str:
    if spec.labels == "shared":
        return "the cloud gets every label as it is."
    if spec.tail:
        return "no label and no gradient leaves."
    if spec.zeroth_order.on:
        bound = f"epsilon {spec.zeroth_order.epsilon:g}, delta {spec.zeroth_order.delta:.2g}"
        added = f"the slopes that train the cloud reveal at most {bound} of a record beyond its vectors"
        return f"no label and no gradient leaves; {added}."
    if spec.task == "causal-lm":
        what = "with surrogates in place of what is replaced" if spec.surrogates.on else "whatever the noise"
        return f"the labels are the text, and gradients name every word that the model learns to write, {what}."
    if spec.label_epsilon is not None:
        return f"gradients reveal at most {spec.label_epsilon:g} nats of each label."
    return "they stay here, but gradients reveal most of them (`--label-epsilon` bounds this, `--tail` sends none)."


def _always(spec: JobSpec) -> str:
    line = "the cloud sees the number of records and how long each is"
    if spec.task == "classification" or spec.tail:
        return f"{line}."
    kept = ", with surrogates where it has them" if spec.surrogates.on else ""
    return f"{line}, and it knows what the tuned model answers{kept}."

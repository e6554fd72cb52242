"""What would the cloud recover? The attack suite of the owner's audit and of the paper's evaluation.

One implementation of each attack, built `oblivious` (on clean vectors: the paper's attacker) or `adaptive` (simulates
the mechanism with fresh noise). Light to import: torch is loaded by the modules below. In data-flow order:

    victim     what the cloud sees of records, and what any attacker can simulate
    public     the attacker's own text: candidates, word frequencies, n-grams; `language`: what it tells by itself
    metrics    top-k, content words, ROUGE-L, intervals, floors
    attacks/   inversion (EIA-1..3), attribute inference (AIA-1..3), side channels and gradients of training
    suite      which attacks run at which size; `prepare`: on what; `frontier`: other strengths of the mechanism
    utility    what a mechanism costs the task, by training; `probe`: the same guessed in a minute
    report/    verdict, JSON, HTML, pictures

Who runs them: `owner` (`privtune audit`), `jobs/` (the gate before a job, the audit of its transcript), `tuning/`
(`privtune tune-noise`), `paper/` (`python -m research.paper`).
"""

"""What would the cloud recover? The attack suite of the owner's audit and of the paper's evaluation.

One implementation of each attack, built `oblivious` (on clean vectors: the paper's attacker) or `adaptive` (simulates
the mechanism with fresh noise). Light to import: torch is loaded by the modules below.

    victim   what the cloud sees of records, and what any attacker can simulate
    public   the attacker's own text: candidates, word frequencies, n-grams
    codebook (EIA-1), tokenwise and sequence (EIA-2), optimise (EIA-3), attribute (AIA-1..3), channels (side channels)
    metrics  top-k, content words, ROUGE-L, intervals, floors
    suite    which attacks run at which size; report and page: JSON and HTML
"""

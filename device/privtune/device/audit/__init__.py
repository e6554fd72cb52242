"""What would the cloud recover? The attack suite of the owner's audit and of the paper's evaluation.

There is one implementation of each attack, built `oblivious` (on clean vectors: the paper's attacker) or `adaptive`
(simulates the mechanism with fresh noise). Importing this package is cheap: torch is loaded by its modules. In
data-flow order:

    observed       released rows as an attacker has them
    victim         what the cloud sees of records, and what any attacker can simulate
    attacker_text  the attacker's own text: candidates, word frequencies, n-grams
    lengths_only   what a language model guesses from lengths alone: the floor of every inversion
    metrics        top-k, content words, ROUGE-L, intervals, floors
    attacks/       inversion (EIA-1 to 3), attribute inference (AIA-1 to 3), side channels, gradients
    sizes, case    how much is attacked, and what
    suite          runs the attacks that apply; `outcome`: what they found
    utility        what a mechanism costs the task, by training; `probe`: an estimate in a minute
    strengths      the same mechanism weaker and stronger
    engine         one model under many mechanisms; `measurement_file`: keeps each measurement as soon as it is made
    report/        verdict, JSON, HTML, pictures

Entry points: `owner` (`privtune audit`), `jobs/` (the gate before a job, the audit of its transcript), `tuning/`
(`privtune tune-noise`), and the evaluations in research/.
"""

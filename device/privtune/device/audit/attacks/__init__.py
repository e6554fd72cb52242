"""The attacks, one implementation of each: what is read from releases and from what training sends back.

`base` is their interface (fit on public text, then attack), `density` and `encoders` what several are built on. Whole
records are inverted by `codebook` (EIA-1, smoothed by `chain`), `learned` (EIA-2) and `optimise` (EIA-3), `attribute`
tells a private attribute (AIA-1..3), `channels`, `gradients` and `labels` read what training gives away besides. No
attack knows who runs it, at which size, or how it is reported.
"""

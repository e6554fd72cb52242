"""The attacks, one implementation of each, on releases and on what training sends back.

`attack` is their interface (fit on public text, then attack); `density`, `chain` and `encoders` are what several build
on. Whole records are inverted by `codebook` (EIA-1; `beam`: with a language model), `learned` (EIA-2) and `optimise`
(EIA-3). `attribute` infers a private attribute (AIA-1 to 3). `channels`, `gradients` and `label_inference` read what
training gives away besides. No attack knows who runs it, at which size, or how it is reported.
"""

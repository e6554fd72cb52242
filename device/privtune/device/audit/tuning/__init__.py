"""`privtune tune-noise`: measures settings of a mechanism on a dev split and chooses one.

`request` is what was asked. `trials` attacks one setting, trains on it and keeps the figures. `tune` goes through the
settings and chooses by the rule of `choice`, which needs neither models nor files. `tune_report` is the document, the
picture and the page.
"""

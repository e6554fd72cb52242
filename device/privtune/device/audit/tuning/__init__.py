"""`privtune tune-noise`: settings of a mechanism measured on a dev split, and one of them chosen.

`request` is what was asked; `bench` attacks one setting and trains on it, and keeps what it found; `tune` goes through
the settings and chooses by the rule of `choice`, which needs neither models nor files; `report` is the document, the
picture and the page.
"""

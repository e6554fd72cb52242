"""`privtune tune-noise`: settings of a mechanism measured on a dev split, and one of them chosen.

`tune` measures one after the other by the audit's attacks and by training, `choice` is the rule, without models or
files, `report` the document, picture and page.
"""

"""What stands between the representations and the wire: mechanisms, their registry and what may be claimed.

Light to import: torch is loaded when a mechanism is built.
"""

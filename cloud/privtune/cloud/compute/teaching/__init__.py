"""Teach-down: the whole model distilled into a device's own blocks, on public text.

corpus -> pieces -> (tuned on public labels) -> targets on disk -> lesson -> taught package
"""

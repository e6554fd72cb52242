"""Audits of a real job of this device: the `gate` before any of its data leaves, `transcript_audit` after it was sent.

`gate` holds the attacks' figures against the policy's thresholds.
`transcript_audit` attacks the frames that a job really sent and received: `recorded` puts them together as an attacker
would, `evidence` finds what they reveal besides the text.
"""

"""The audit around a job of this device: `gate` before anything of its data leaves, `transcript` after it was sent.

`gate` holds the attacks' figures against the policy's thresholds.
`transcript` attacks the frames that a job really sent and received: `recorded` puts them together as an attacker would,
`evidence` tells what they show besides the text.
"""

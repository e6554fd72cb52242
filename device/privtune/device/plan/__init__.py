"""What a job will take, before it starts: time, bytes, memory, disk, money, and what the cloud would read.

planning     from a request to a plan: reads the data, measures, counts, picks what was left open
workload     counts of a job: steps, positions, bytes on the wire; exact but for a frame's few header bytes
calibration  a few real micro-batches on this device, with answers made up here
line         a probe of the line to the cloud
lengths_seen what the numbers of rows say of records, and what padding adds
room         memory and disk on both sides
forecast     seconds and money, and what limits
"""

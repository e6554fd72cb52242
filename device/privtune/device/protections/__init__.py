"""Protections that a person chooses by name: their settings, what the cloud reads under them, what they cost.

protection   the names, from the least to the most, and the job settings of each
level        which of them a job's settings reach, whatever it is called
readable     what the cloud can read of a job, in three lines
measured     the measured rows of docs/results, from one file that research/ writes
"""

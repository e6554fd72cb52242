"""The noise between the device's representations and the wire. In the order in which a release is made:

registry      every mechanism by name: its settings, its source, what may be claimed
params        the settings of each mechanism
context       what a mechanism may know of the model: public facts only
public_texts  texts that the owner has declared public
importance    how much each token matters to the task
tables        public tables that mechanisms draw from
randomness    where the noise comes from
gaussian_noise  normal noise, whole or within a public box, for vectors and aggregates
base          the interface of every mechanism
clipping      bounded vectors, without which noise has no worst-case bound
mechanisms    the mechanisms, one file each

Light to import: torch is loaded when a mechanism is built.
"""

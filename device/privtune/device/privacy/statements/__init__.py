"""The claims that an owner reads, one module for each family of mechanisms, none stronger than what is proved.

statement          what a claim consists of, and the caveats that always hold
no_bound           clean vectors, and noise without a worst-case bound
added_noise        d_chi, Gaussian and Laplace noise added to vectors
shared_target      tokens replaced by what their public cluster or code stands for
fitted_tables      what tables fitted on the private records cost on top
stopped            what the end of a job with early stopping tells of its held-out records
surrogate          texts whose identifying words were replaced before the model read them
padded             what padding hides of lengths
randomised_labels  labels that train as one randomised draw per record
noised_slopes      the noised slopes that train the cloud in place of gradients
"""

from privtune.device.privacy.statements.noised_slopes import SlopeStatement
from privtune.device.privacy.statements.padded import padded_statement
from privtune.device.privacy.statements.randomised_labels import LabelStatement
from privtune.device.privacy.statements.statement import Statement
from privtune.device.privacy.statements.stopped import stopped_statement

__all__ = ["LabelStatement", "SlopeStatement", "Statement", "padded_statement", "stopped_statement"]

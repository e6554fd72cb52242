"""What may be claimed for a release: privacy accounting as plain maths, and the statements that an owner reads.

bounds       losses of each kind of noise, randomised response, composition
pair_report  a metric guarantee in figures: losses over neighbouring tokens
statements   the claims themselves, one module for each family of mechanisms

Free of torch: the command line reads statements before a model is loaded.
"""

"""Tables that mechanisms draw from: made once, kept on disk. Each module builds on those above it.

table_cache       tables as files: found by how they were made or by their hash, checked on load
graph             who is near whom in the vocabulary
word_frequency    how frequent each word is
public_tables     prototypes, graph, frequencies and special tokens of one model at one injection point
class_words       which words indicate which class of a task, and how strongly
private_counts    word counts of the private records by class, under noise
class_directions  directions that separate the classes, from public texts or from private means under noise
clustering        balanced clusters of the vocabulary
cluster_table     the clusters that a mechanism's settings ask for, and their centres
cluster_targets   what is released in place of a token of a cluster
shift             PrivTune's optimal shift of each token
"""

"""Captions and features of more photos than one machine has the time for, on a Ray cluster.

Photos are divided into units, a unit is the work of one call of one worker, and what comes of it is
one shard, which is there whole or not at all. Whatever dies, a unit without its shard is done again
and a unit with it is not.
"""

"""Data sets as tar shards: reading and writing."""

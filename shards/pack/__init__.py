"""Packing: a folder of patches becomes shards and `dataset.json`.

__main__  `python -m shards.pack SOURCE OUT`
packing   `pack`: collect, plan, build, write the metadata; `pack_task`: one of several tasks
plan      the options, the order of the patches, their keys and shards
tasks     one of several tasks that share a pack, and the plan that they share
workers   worker processes, which look up files and build shards
shard     one shard: patches read, checked and written as a tar and a sidecar
resume    the output folder: locks, records of finished shards, leftovers of killed packers
metadata  `dataset.json` from the records of all shards, exact duplicates counted; the summary
"""

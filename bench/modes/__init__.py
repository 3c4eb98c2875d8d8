"""What `bench/throughput.py` measures: each mode has `measure(settings, accelerator)` and `report`.

model         size and speed of every architecture
training      whole steps, their parts, and plain trainers
augment       D4 and the corruptions beside the step
side_by_side  several trainings on one device
neighbours    a training beside others on the same cores, by how long threads spin
embedding     from shards to embeddings on the disk
packing       PNG files to shards
reading       shuffled epochs of batches
scaling       packing and reading by several processes
shuffle       how good the order of streaming is
processes     processes that start together on a signal
"""

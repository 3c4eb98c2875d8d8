"""What a GPU reaches, in one command of eight minutes: `bash bench/gpu/run.sh OUT [--dry]`.

command  runs the steps one after the other, each in a process with a time limit
work     the steps: each appends what it measures to a file as soon as it has it
points   whole training steps: a preset, a variant and a batch size each; and their kernels
report   the records of the steps, and their tables
"""

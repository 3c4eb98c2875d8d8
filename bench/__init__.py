"""Throughput of this machine: training, packing, reading and embedding, beside other tools.

throughput     the command: `python bench/throughput.py [MODE]`
arguments      its command line
command        its JSON file and its tables
settings       how much is measured, by default per device
patches        the patches to measure on, in every form that a tool reads
timing         timers, rounds, and what a piece of work used
records        what was measured: spreads, records and their JSON
steps          training steps to time, and the parts of one
counts         parameters, multiply-adds and FLOPs of a model
roofline       a step compared with the peak arithmetic and bandwidth of the machine
plain_trainer  a trainer and its loaders written without this project, for comparison
baselines      whole training steps by the plain trainer and by ours
small_cnn      an ordinary CNN trained on the labels, as a second ceiling
readers        our ways to read shuffled batches, and what a reader must provide
peers          the same reading by other tools
slides         slides to shards, compared with PNG files between: `python -m bench.slides`
modes          what the command measures, a module per mode
gpu            a GPU in one command of eight minutes: `bash bench/gpu/run.sh OUT`
"""

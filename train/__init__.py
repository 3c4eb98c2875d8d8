"""Training: from a preset and a packed data set to a run folder with an evaluated model.

main        the command: parses the arguments, imports torch, runs `program`
program     the course of a run: prepare, train, evaluate, report; status.json and exit status
arguments   the command line: a preset or a run's config.json, then settings
config      the settings of a run and the presets
data        finds the data set, or packs or generates one
launch      the processes and the device of a launch, and the settings that depend on them
prepare     a run folder that all ranks agree on
summary     lines and warnings that a run logs at its start and end
loop        the training loop
step        from uint8 images and random tensors to losses: the graph that is compiled
task        reconstructing images or classifying them: objective and validation
schedule    a run in steps, its learning rate, weight average and optimizer
checkpoint  the state of a run on disk, for resuming
tracker     metrics.jsonl, TensorBoard, and trackers of Accelerate
doctor/     command: the machine, the data, what training chooses here, what to change
sweep/      many runs: ablations here or on Slurm
"""

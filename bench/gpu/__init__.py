"""What a GPU reaches, in one command of eight minutes: `bash bench/gpu/run.sh OUT [--dry]`.

run.sh   installs the wheels in the folder $WHEELS, if one is named, and starts the command
command  runs the steps one after the other, each in a process with a time limit
work     the steps: each appends what it measures to a file as soon as it has it
points   whole training steps: a preset, a variant and a batch size each
kernels  the kernels of a compiled step
report   the records of the steps, and their tables

Beside torch, torchvision, torchmetrics, accelerate, safetensors, pyarrow, scipy, psutil, xxhash and
pytest, which a machine with a GPU usually has, the steps import these packages (8 MB of wheels):

kornia 1.9 MB    kornia-rs 5.3 MB    msgspec 0.2 MB    deflate 0.1 MB
tyro 0.2 MB      docstring-parser and typeguard 0.1 MB
"""

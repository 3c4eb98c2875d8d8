"""What every package needs, and the only package without a subject of its own.

startup  the environment that torch reads while it is loaded: prepared when `common` is imported
errors   `DataError`: unusable input
console  messages, tables, progress, times
files    atomic writes, JSON
locks    locks between processes, which name their holder
machine  cores and threads, environment, memory allocator
records  records as plain JSON values, and their differences
ranks    processes of a distributed launch
command  start and end of a command, exit status
"""

from common.startup import prepare_environment

prepare_environment()

"""What every package needs, and the only package without a subject of its own.

errors   `DataError`: unusable input
console  messages, tables, progress, times
files    atomic writes, JSON
locks    locks between processes
machine  cores, environment, memory allocator
records  records as plain JSON values, and their differences
ranks    processes of a distributed launch
command  start and end of a command, exit status
"""

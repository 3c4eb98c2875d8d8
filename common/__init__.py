"""What every package needs, and the only package without a subject of its own.

errors.py     `DataError`: unusable input
console.py    messages, tables, progress, times
files.py      atomic writes, JSON
locks.py      locks between processes
machine.py    cores, environment, memory allocator
ranks.py      processes of a distributed launch
command.py    start and end of a command, exit status
"""

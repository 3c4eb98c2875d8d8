"""This machine, the data, what training chooses here, what to change: `python -m train.doctor`.

The first thing that a bug report should hold.

lines   the lines of the report, each of a check that may fail or not answer
checks  the checks: of the machine, of the data, of the settings that training chooses
"""

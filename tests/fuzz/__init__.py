"""Fuzzing of what reads files from outside; see docs/testing.md.

__main__      `python -m tests.fuzz TARGET ...`: coverage-guided by atheris, for minutes or hours
targets       what is fuzzed: valid inputs to begin with, and the property that holds for any input
inputs        how the valid inputs are made, and checksums repaired so that mutations get past them
test_targets  each target with its valid inputs, damaged at random by a seeded generator
"""

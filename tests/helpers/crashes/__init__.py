"""Crashes of commands, for tests.

states  what a crash at any point of a recorded command may leave on disk
replay  the command again on such states
calls   a kill or an error at one call of the file system
"""

"""Ablations: every arm of a recipe with every seed, on this machine or as jobs of Slurm.

options  options of a sweep, without torch
recipes  lists of arms, each a whole configuration
runs     the runs of a sweep on disk, and the commands that remain to be run
local    concurrent runs on this machine
slurm    one job per run, through submitit
sweep    the plan of a sweep, and its execution
"""

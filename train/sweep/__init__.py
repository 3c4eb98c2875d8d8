"""Ablations: every arm of a recipe with every seed, on this machine or as jobs of Slurm.

recipes     lists of arms, each a whole configuration
runs        the runs of a sweep on disk, and the commands that are left of them
local       runs side by side on this machine
slurm       one job per run, through submitit
sweep       options, plan and course of a sweep
"""

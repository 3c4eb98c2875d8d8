"""Statistics of test scores (docs/statistics.md), in the order of the data:

grouping   checks a scored test set and codes its groups and strata
weighted   metrics as functions of the weights of groups
bootstrap  intervals: groups resampled within class, crossed with the effect of seeds
contrasts  differences between two arms, judged with Holm's correction
"""

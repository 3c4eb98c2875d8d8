"""What is measured of a model and of its features, in the order of the data:

metrics     reconstruction, rate and equivariance of a model
readouts    features made of the codes of a model, and baselines without training
logistic    logistic regression over a grid of penalties
probe       classifiers on features, selected on val
budgets     the primary probe with few labels
robustness  the primary probe on corrupted patches
scores      scores of every test patch by condition, in scores.parquet
probing     all probes of an evaluation: every feature set in every condition
"""

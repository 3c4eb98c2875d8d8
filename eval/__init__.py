"""Evaluation of runs and of other encoders, and embeddings; the modules in the order of the data:

run                    reads the files of a run folder
encoder                a trained encoder for use from Python
transformer            the same as a step of scikit-learn pipelines
config                 options of the commands, without torch
session                the data set, run and model, opened
parquet                Parquet files that hold a hash of their content
features               our files of embeddings
external_features      files of embeddings made elsewhere
measure/               metrics, readouts, baselines and probes of a model
stats/                 intervals and contrasts over groups and seeds
drawing/               figures and pictures of a run
results                the records of results.json, and how records are read and written
export/                what others take away: model card, formats
evaluation             evaluates a run (command `eval.main`)
embedding              embeds any patches (command `eval.embed`)
external_evaluation    evaluates the embeddings of any encoder (command `eval.external`)
transfer/              transfers probes between data sets
report/                compares evaluated runs
main, embed, external  the commands
"""

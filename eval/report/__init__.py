"""Reports: evaluated runs side by side, with verdicts, intervals, charts and tables.

In the order in which data pass:

runs        results of every run, and the baselines measured with them
arms        runs that differ only in their seed, and their scores
verdicts    contrasts between arms: the planned ones with a verdict, others exploratory
ranking     whether a data set can rank models: against untrained features and labels
tables      scores of arms and runs
efficiency  size and speed of the models, as bench/throughput.py measured them
charts      which numbers are charted against which
svg         how a chart is drawn
atlas       map of the embeddings: two principal components with thumbnails
pictures    patches and codes of runs side by side, and the figures of evaluations
document    sections of text, tables, charts and pictures, free of any markup
compose     composes the document
report      writes it in every format
writers     the document as Markdown, LaTeX and HTML
"""

"""Reports: evaluated runs side by side, with verdicts, intervals, charts and tables.

In the order in which data pass:

runs        results and scores of every run; arms: runs that differ only in their seed
verdicts    contrasts between arms: the planned ones with a verdict, others exploratory
ranking     whether a data set can rank models: against untrained features and labels
tables      scores of arms and runs
summary     what was compared on what, in one sentence; which models are pictured
efficiency  size and speed of the models, as bench/throughput.py measured them
charts      which numbers are charted against which
svg         how a chart is drawn
atlas       map of the embeddings: two principal components with thumbnails
strips      patches and codes of runs side by side
document    sections of text, tables, charts and pictures, free of any markup
compose     composes the document
report      writes it in every format
writers     the document as Markdown, LaTeX and HTML
"""

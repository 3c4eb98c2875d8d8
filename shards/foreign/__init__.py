"""Make a data set of WebDataset tars of another tool, without copying or changing them.

Every tar is scanned once, which gives its sidecar; `dataset.json` records where the tar is.

    fields      the text members of a sample: a class in `.cls`, fields in `.json`
    scan        one tar: every member checked, every image decoded
    collect     which tars, the split of each, and the numbers of the classes
    provenance  what an index was made of, and whether it is complete
    index       scan all tars, write sidecars and `dataset.json`: `index_tars`
"""

"""Transfer of probes between data sets and sites, in the order of the data:

datasets    opens the data sets, with one numbering of the classes; patches in other staining
experiment  probes between data sets, without one site, and of the site
transfer    runs the experiments and writes transfer.json, transfer.md and scores
results     the records of transfer.json
tables      tables for transfer.md and the report, and differences between arms
"""

"""What others take away from a run and its embeddings (command `eval.export`).

model_card  the README.md of a snapshot, written from the results
table       the embeddings of `eval.embed`, read
formats     AnnData, HDF5 as TRIDENT writes it, a table of slides
values      clusters, and the scores of a probe
maps        these over a slide: GeoJSON for QuPath, PNG
files       all that the options name
"""

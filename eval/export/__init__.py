"""What others take away from a run and its embeddings.

model_card  the README.md of a snapshot, written from the results
"""

"""From packed shards to batches: opening, order, reading, augmentation and corruption.

config         settings of storage, staining and corruption, without torch
index          open a packed data set and check it
reader         patches of a split by their index, each checked once
loader         the order of training, and its batches, from disk, host memory or device memory
pixels         bytes to floats in [0, 1] and back
d4             exact flips and quarter turns of images and latents
corruptions    noise, blur, JPEG and other changes of a clean batch
jitter         random colours of training patches
stain          haematoxylin and eosin: jitter and normalisation
normalisation  statistics of staining, and patches normalised by them
units          sites, slides or source images whose staining is normalised: fitted to a data set
"""

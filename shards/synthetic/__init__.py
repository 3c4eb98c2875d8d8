"""Generate a small set of H&E-like patches, with a known difficulty.

tissue    structure: where haematoxylin and eosin bind, one function per class
generate  stain, scanner, and the whole set in class folders: `generate`, `sources`
__main__  the command
"""

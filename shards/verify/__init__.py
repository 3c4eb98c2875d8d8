"""Check a data set completely, trusting neither the files nor the code that wrote them.

Hashes and sizes against `dataset.json`, every member of every tar against its sidecar row, every
PNG decoded, keys unique, classes and channel means counted again. The tars are parsed by other
code than the code that wrote them. Warnings, which are no damage: groups that cross splits, and
patches that are in two splits, exactly or nearly.

    shard       one shard: bytes, members, pixels; problems and counts
    duplicates  patches that are in two splits
    check       the whole data set: `verify`
    __main__    the command, which also makes a data set of foreign tars (--index)
"""

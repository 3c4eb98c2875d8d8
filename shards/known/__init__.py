"""Public sets of patches, packed from the files as they are downloaded.

`python -m shards.known NAME FILES OUT`. Each set has a module that lists its patches with their
classes, groups and splits; the numbers of patches must be those that were published.

    sets          what each set is: its title, site, licence and numbers of patches
    inputs        the files of a set among those that the command names; tables; counts
    gz            files compressed by gzip
    hdf5          arrays of an HDF5 file
    mat           a matrix of a MATLAB file
    npz           arrays of an .npz file, a block at a time
    pcam          PatchCamelyon
    pathmnist     PathMNIST
    crchisto      CRCHistoPhenotypes
    arrays        `ArraySource`: these three as packing sees them
    camelyon17    Camelyon17-WILDS
    nct_crc       NCT-CRC-HE-100K and CRC-VAL-HE-7K
    files         `KnownFiles`: these two, a file per patch
"""

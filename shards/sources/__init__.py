"""Sources of patches, and what folders, names and tables tell about each patch.

`collect.collect` lists the patches of a source and gives each its split; packing then reads them
one by one. A new kind of source is a class that follows `source.Source` and one entry in
`collect.AnySource`; slides are one (`shards.slides`).

    source    a patch, the list of all patches, and the protocol of a source
    names     source image, position, patient and site from a file's name
    spelling  paths of a manifest that name no file: the one that is meant, or the cause
    files     which files may be patches: by name, size and link; many at once
    layout    what folders mean: class, patient, slide or site
    folder    patches under a folder: the walk
    columns   the columns of a manifest, checked cell by cell
    manifest  patches that a CSV or Parquet table lists
    staged    a scratch file for patches of images that hold several
    convert   images of other sizes and kinds: cropped, resized or cut into tiles
    values    classes that look alike, names that mean nothing, mixed magnifications
    splits    groups of patches, and train, val and test: as the source has them, or drawn by group
    collect   the kinds of source, and the patches of one with their splits
"""

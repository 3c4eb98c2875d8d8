"""Data sets of patches: the format, packing, checking, and data sets from elsewhere.

schema      the format: keys, sidecars, `dataset.json`
codec/      PNG, JPEG and tar: bytes to arrays and back
sources/    where patches come from: folders, manifests, larger images
known/      public sets of patches, from the files as they are downloaded
slides/     patches from whole slides: tissue, resolution, cutting
pack/       patches to shards
merge       command: complete a pack that several tasks shared
foreign/    tars of another tool, used where they are
remote/     data sets from a URL, through a cache
fetch       command: copy a remote data set into the cache
verify/     check a whole data set
sites       command: one manifest per site, with that site as test
synthetic/  generated H&E-like patches
"""

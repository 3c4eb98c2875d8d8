"""Slides as a source: tissue is found, patches are cut at one resolution, straight into shards.

`python -m shards.pack SLIDES OUT --mpp 0.5`. No patch is written to a file of its own: regions are
decoded once, and their patches wait in one file until their shards are built.

    options      what is cut, and at which resolution
    listing      the slides in a folder
    reader       one slide: size, resolution, levels, pixels; by OpenSlide or tiffslide
    tissue       where tissue is, on a thumbnail
    grid         positions of patches: a lattice on the slide or in boxes
    coordinates  boxes from an HDF5 file of TRIDENT or CLAM
    annotations  classes from a GeoJSON file of QuPath
    cutting      pixels of patches: level, region, resampling
    sheet        the contact sheet of a slide
    survey       all of the above for one slide: its patches, or why it has none
    staging      all patches of all slides, cut by several threads and continued after a stop
    source       `SlideSource`: slides as packing sees them, and the table of slides
"""

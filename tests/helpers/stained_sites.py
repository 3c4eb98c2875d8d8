"""A packed data set of two sites that hold the same tissue in different stains."""

from pathlib import Path

import numpy as np

from shards.pack.packing import pack
from shards.pack.plan import PackOptions
from tests.helpers.patches import as_is, pale, stained_patches

COUNTS = {"train": 24, "val": 12, "test": 12}  # patches of a site, half of them of each class
LOOKS = {"north": as_is, "south": pale}


def packed_sites(folder: Path, seed: int = 0, columns: tuple[str, ...] = ("site", "slide")) -> Path:
    """Pack patches of two classes; a slide has 12 patches, two slides of north have 2 and 10.

    The source image of a patch is its slide.
    """
    rows = [f"path,label,split,{','.join(columns)}"]
    for site, look in LOOKS.items():
        rng = np.random.default_rng(seed)  # the same tissue
        for split, count in COUNTS.items():
            labels = np.arange(count) % 2
            for i, image in enumerate(stained_patches(labels, rng, look)):
                slide = f"{site}-{split}-{(i + 10) // 12 if site == 'north' else i // 12}"
                path = f"{site}/{split}/{slide}__y0000_x{32 * i:04d}.png"
                (folder / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
                image.save(folder / "raw" / path)
                values = {"site": site, "slide": slide}
                named = [values[column] for column in columns]
                rows.append(",".join([path, "ab"[labels[i]], split, *named]))
    (folder / "patches.csv").write_text("\n".join(rows) + "\n")
    pack(folder / "raw", folder / "shards", PackOptions(workers=1, manifest=folder / "patches.csv"))
    return folder / "shards"

"""Pack a folder of patches into WebDataset shards: `python -m shards.pack SOURCE OUT`.

The bytes written depend on the files and on the options alone: not on the number of processes,
the order of the directory, the machine or the time.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from shards.build import MAX_LISTED, Job, Record
from shards.crew import build_all
from shards.output import finish, locked, prepare, publish, read_record, refuse_occupied, sweep
from shards.output import sync_folder as sync
from shards.plan import PackOptions, Plan, make_plan
from shards.png import PATCH_VALUES
from shards.progress import progress
from shards.schema import (
    CARD_NAME,
    DatasetCard,
    DataError,
    Shard,
    SplitCard,
    dumps_card,
)
from shards.sources import Survey, listing, survey
from shards.split import leaks

_FEW = 20_000  # patches packed in the time that starting processes takes
_SHOWN_BAD = 20


def pack(source: Path, out: Path, options: PackOptions = PackOptions()) -> DatasetCard:
    """Pack `source` into `out` and return the card written there.

    Raises:
        DataError: the source or the output folder cannot be used, more bad patches than
            `options.skip_bad`, a source file that changed, a full disk. `out` then holds no
            `dataset.json`; after an interruption or a full disk, the same call continues.
    """
    source, out = Path(source), Path(out)
    _refuse_nested(source, out)
    start = time.monotonic()
    with locked(out):
        refuse_occupied(out, options.overwrite)
        found = survey(source, options.group_regex)
        _tell(found, options.skip_bad)
        plan = make_plan(found.patches, options)
        prepare(out, plan, options.overwrite)
        try:
            records = _build(source, out, plan, options)
        finally:
            sweep(out)
        card = _card(source, plan, found, records, options)
        with publish(out / CARD_NAME) as file:
            file.write(dumps_card(card))
        sync(out)
        finish(out)
    _summarise(card, plan, time.monotonic() - start)
    return card

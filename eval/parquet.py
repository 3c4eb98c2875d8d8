"""Parquet files that hold a hash of their content, by which damage shows."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from common.errors import DataError
from common.files import atomic_path, hash_json

ROW_GROUP = 16_384
ARROW_SCHEMA = "ARROW:schema"  # metadata that Arrow adds
CONTENT_HASH = "content_xxh3"  # metadata of our files


class TableHash:
    """Hash (xxh3-64) of the values of tables, however their rows are divided into tables.

    For columns of strings, numbers, and fixed-size lists of numbers.
    """

    def __init__(self) -> None:
        self._columns: dict[str, xxhash.xxh3_64] = {}

    def update(self, table: pa.Table) -> None:
        for name in table.column_names:
            for array in table[name].chunks:
                self._add(name, array)

    def hexdigest(self, facts: Mapping[str, str]) -> str:
        """Return the hash of all tables so far and of the metadata of their file."""
        columns = {name: column.hexdigest() for name, column in self._columns.items()}
        return hash_json({"columns": columns, "facts": dict(facts)})

    def _add(self, name: str, array: pa.Array) -> None:
        if pa.types.is_fixed_size_list(array.type):
            self._add(f"{name} in lists of {array.type.list_size}", array.flatten())
            return
        name = f"{name} {array.type}"
        self._hash(f"{name} nulls", array.is_null().to_numpy(zero_copy_only=False))
        if pa.types.is_string(array.type):
            texts = array.fill_null("").cast(pa.large_binary())
            _, offsets, data = texts.buffers()
            ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
            self._hash(f"{name} lengths", np.diff(ends))
            if data is not None and len(ends):
                self._hash(f"{name} texts", np.frombuffer(data, np.uint8)[ends[0] : ends[-1]])
        else:
            self._hash(name, array.fill_null(0).to_numpy(zero_copy_only=False))

    def _hash(self, name: str, values: NDArray[Any]) -> None:
        column = self._columns.setdefault(name, xxhash.xxh3_64())
        column.update(np.ascontiguousarray(values).view(np.uint8).data)


def write_tables(path: Path, tables: Iterable[pa.Table], facts: Mapping[str, str]) -> None:
    """Write tables of one schema to a Parquet file, one after the other, whole or not at all.

    The metadata of the file are `facts` and CONTENT_HASH, by which `read_table` knows damage.

    Raises:
        DataError: an error of the file system.
        ValueError: there is no table.
    """
    writer, content = None, TableHash()
    with atomic_path(path) as temp:
        for table in tables:
            if writer is None:
                schema = table.schema.with_metadata(dict(facts))
                writer = pq.ParquetWriter(
                    temp, schema, compression="zstd", write_page_checksum=True
                )
            writer.write_table(table.replace_schema_metadata(dict(facts)), ROW_GROUP)
            content.update(table)
        if writer is None:
            raise ValueError(f"{path}: there is nothing to write")
        writer.add_key_value_metadata({CONTENT_HASH: content.hexdigest(facts)})
        writer.close()


def read_table(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """Read a file of `write_tables` and its facts, or another Parquet file, which has no hash.

    Raises:
        DataError: the file is damaged, or its content is not that of its hash.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table, metadata = file.read(), file.metadata.metadata or {}
        facts = {name.decode(): value.decode() for name, value in metadata.items()}
        facts.pop(ARROW_SCHEMA, None)
        recorded_hash, content = facts.pop(CONTENT_HASH, None), TableHash()
        if recorded_hash is not None:
            content.update(table)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise unreadable(path, error) from None
    if recorded_hash not in (None, content.hexdigest(facts)):
        raise DataError(
            f"{path} was altered since it was written: its content is not that of its hash. Remove "
            "it, and run the command that made it again; if you changed it yourself, remove the "
            f"metadata {CONTENT_HASH!r}"
        )
    return table.replace_schema_metadata(facts), facts


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a damaged file of embeddings."""
    reason = " ".join(str(error).split())
    return DataError(
        f"{path} cannot be read as Parquet ({reason}): remove it, and run the command that made "
        "it again"
    )

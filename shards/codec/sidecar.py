"""The bytes of a sidecar: every option of Parquet that changes them is fixed here."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(table: pa.Table) -> memoryview:
    """A table of the schema `shards.schema.SIDECAR` as a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=1 << 16, compression="zstd", compression_level=3,
        version="2.6", use_dictionary=["source", "slide", "patient", "site"],
    )  # fmt: skip
    return memoryview(sink.getvalue())


def columns(path: Path, names: list[str]) -> pa.Table:
    """Some columns of a sidecar."""
    # not read_table: its first call imports pyarrow.dataset, which costs what 2,000 patches do
    with pq.ParquetFile(path) as file:
        return file.read(columns=names)

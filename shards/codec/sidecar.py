"""Read and write sidecars, the Parquet tables beside the tars."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.schema import SIDECAR


def encode_sidecar(table: pa.Table) -> memoryview:
    """Encode a table of the schema `shards.schema.SIDECAR`; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        row_group_size=1 << 16,
        compression="zstd",
        compression_level=3,
        version="2.6",
        use_dictionary=["source", "slide", "patient", "site"],
    )
    return memoryview(sink.getvalue())


def decode_sidecar(data: bytes, count: int) -> pa.Table:
    """Decode and check a sidecar of `count` rows that is not trusted.

    Raises:
        ValueError: not Parquet, other columns, or another number of rows.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            # a small file can claim any number of rows: the claim is checked before they are read
            if file.metadata.num_rows != count:
                raise ValueError(f"{file.metadata.num_rows} rows, expected {count}")
            if not file.schema_arrow.equals(SIDECAR):
                raise ValueError("the columns are not those of the format")
            table = file.read()
            table.validate(full=True)  # lengths, and strings that are UTF-8
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not readable as Parquet: {error}") from None
    if table.num_rows != count:
        raise ValueError(f"{table.num_rows} rows, expected {count}")
    return table


def read_columns(path: Path, names: list[str]) -> pa.Table:
    """Read some columns of a sidecar, without a check of its format.

    Raises:
        KeyError: a column is missing.
        pa.ArrowException, OSError, ValueError: not readable.
    """
    # not read_table: its first call imports pyarrow.dataset, as slow as packing 2,000 patches
    with pq.ParquetFile(path) as file:
        return file.read(columns=names).select(names)

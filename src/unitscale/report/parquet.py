"""A recording as a Parquet file: the rows of the JSONL file, a column a statistic.

A quarter the size. Needs pyarrow. A Parquet file has its index at its end: it can be read once it
is closed, not while the recording goes on, and it cannot be continued.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unitscale.report.extra import imported
from unitscale.report.shape import parse

Row = Mapping[str, Any]

SUFFIX = ".parquet"

HEADER_KEY = b"unitscale"
"""Under which key of the file's metadata the line with the formats is."""

NUMBERS = ("rms", "amax", "mean", "kurtosis", "data_fraction", "drift")
SHARES = ("flushed", "subnormal", "saturated", "sqnr_db")


def arrow(name: str) -> Any:
    """A module of pyarrow.

    Raises:
        ValueError: it is not installed.
    """
    return imported(name, instead=", or use a file that ends in .jsonl")


class ParquetWriter:
    """A Parquet file open for rows; each call of `write` makes a row group.

    Raises:
        ValueError: pyarrow is not installed.
    """

    def __init__(self, path: Path, header: Row) -> None:
        pa, parquet = arrow("pyarrow"), arrow("pyarrow.parquet")
        self.schema = schema(pa, list(header["formats"])).with_metadata(
            {HEADER_KEY: json.dumps(header)}
        )
        self.table, self.path = pa.Table, path
        # Without its index at the end the file is useless: until then it has another name.
        self.temporary = path.with_name(path.name + ".tmp")
        self.file = parquet.ParquetWriter(self.temporary, self.schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        """Add the rows of one step."""
        flat = [row | {"histogram": row["histogram"][1]} for row in map(dict, rows)]
        for mine, row in zip(flat, rows, strict=True):
            mine["histogram_low"] = row["histogram"][0]
        self.file.write_table(self.table.from_pylist(flat, self.schema))

    def close(self) -> None:
        """Write the index, which makes the file whole, and give it its name."""
        if self.file.is_open:
            self.file.close()
            self.temporary.replace(self.path)


def schema(pa: Any, formats: Iterable[str]) -> Any:
    """The columns: those of a row, with the histogram in two."""
    shares = pa.struct([(name, pa.float64()) for name in SHARES])
    return pa.schema(
        [
            ("step", pa.int64()),
            *((name, pa.string()) for name in ("name", "op", "direction")),
            ("held_log2", pa.int32()),
            *((name, pa.float64()) for name in NUMBERS),
            ("sampled", pa.int32()),
            ("operand", pa.bool_()),
            ("rounded_as", pa.string()),
            ("histogram_low", pa.int32()),
            ("histogram", pa.list_(pa.int32())),
            ("formats", pa.struct([(name, shares) for name in formats])),
        ]
    )


def read_parquet(path: Path) -> Iterator[Row]:
    """The header and the rows of a Parquet file, as they were given to `ParquetWriter`.

    Raises:
        ValueError: pyarrow is not installed, or the file is not a whole recording.
    """
    pa, parquet = arrow("pyarrow"), arrow("pyarrow.parquet")
    damage = (pa.ArrowException, KeyError, TypeError)
    try:
        file = parquet.ParquetFile(path)
        header = parse(file.schema_arrow.metadata[HEADER_KEY], str(path))
        with file:
            yield header
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    histogram = [row.pop("histogram_low"), row.pop("histogram")]
                    for key in ("operand", "rounded_as"):  # not known when it was written
                        if row.get(key) is None:
                            row.pop(key, None)
                    yield row | {"histogram": histogram}
    except damage as error:
        raise ValueError(f"{path} is not a whole Parquet recording ({error})") from error

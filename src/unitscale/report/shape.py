"""JSON that comes from a file, checked before anything is made of it.

A file of another program, an older version or a damaged disk may hold any JSON: a list for an
object, a text for a number, or 100,000 brackets. Each is one line that says where and what.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SHARES = ("flushed", "subnormal", "saturated")
LARGEST_INTEGER = 2**53
"""Beyond it a JSON number is no exact integer everywhere."""

LARGEST_EXPONENT = 1000
"""No float64 has an exponent beyond it by much; a histogram of more would only fill the memory."""


class Field(NamedTuple):
    """What a value should be, in words and as a test, and whether it may be absent."""

    expected: str
    is_met: Callable[[Any], bool]
    is_required: bool = True


def is_number(value: Any) -> bool:
    """Whether it is a finite number; an integer beyond float64 is none."""
    # The type first, which is quicker: a long recording asks this ten million times.
    kind = type(value)
    is_real = kind is float or kind is int or (kind is not bool and isinstance(value, int | float))
    return is_real and -1.7e308 < value < 1.7e308


def is_integer(value: Any, low: int = 0, high: int = LARGEST_INTEGER) -> bool:
    """Whether it is an integer in a range; 2.0 is one."""
    return is_number(value) and low <= value <= high and value % 1 == 0


def is_text(value: Any) -> bool:
    """Whether it is a text."""
    return isinstance(value, str)


def is_magnitude(value: Any) -> bool:
    """Whether it is a number of at least 0, or None."""
    return value is None or (is_number(value) and value >= 0)


def is_histogram(value: Any) -> bool:
    """Whether it is `[lowest exponent, counts]`."""
    if not (isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[1], list)):
        return False
    low, counts = value
    is_short = len(counts) <= 2 * LARGEST_EXPONENT
    known = is_integer(low, -LARGEST_EXPONENT, LARGEST_EXPONENT) and is_short
    return known and all(map(is_integer, counts)) and (not counts or any(counts))


def is_shares(value: Any) -> bool:
    """Whether it holds the shares lost, per format."""
    return isinstance(value, Mapping) and all(
        isinstance(found, Mapping)
        and all(kind in found and is_magnitude(found[kind]) for kind in SHARES)
        and (found.get("sqnr_db") is None or is_number(found["sqnr_db"]))
        for found in value.values()
    )


def is_limits(value: Any) -> bool:
    """Whether it holds the range of each format, and at least one."""
    keys = {"max", "min_normal", "min_subnormal"}
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(
            isinstance(limits, Mapping)
            and keys <= limits.keys()
            and all(is_number(limits[key]) and limits[key] > 0 for key in keys)
            for limits in value.values()
        )
    )


TEXT = Field("a text", is_text)
INTEGER = Field("an integer of at least 0", is_integer)
NUMBER = Field("a number or null", lambda x: x is None or is_number(x))
MAGNITUDE = Field("a number of at least 0, or null", is_magnitude)
BOOLEAN = Field("true or false", lambda x: isinstance(x, bool))


def optional(field: Field) -> Field:
    """The same, but it may be absent."""
    return field._replace(is_required=False)


HEADER = {
    "formats": Field("the max, min_normal and min_subnormal of each format", is_limits),
    "recipe": optional(TEXT),
}

ROW = {
    "step": INTEGER,
    "name": TEXT,
    "op": TEXT,
    "direction": Field(
        "value, gradient or state", lambda x: is_text(x) and x in ("value", "gradient", "state")
    ),
    **dict.fromkeys(("rms", "amax", "data_fraction"), optional(MAGNITUDE)),
    **dict.fromkeys(("mean", "kurtosis", "drift"), optional(NUMBER)),
    "held_log2": Field(
        f"an integer within {LARGEST_EXPONENT} of 0",
        lambda x: is_integer(x, -LARGEST_EXPONENT, LARGEST_EXPONENT),
        is_required=False,
    ),
    "operand": Field("true or false", lambda x: isinstance(x, bool), is_required=False),
    "rounded_as": optional(TEXT),
    "histogram": Field("[lowest exponent, counts]", is_histogram, is_required=False),
    "formats": Field("the shares lost, per format", is_shares, is_required=False),
}


def is_answers(value: Any) -> bool:
    """Whether it holds what each recipe would make of a product."""
    return isinstance(value, Mapping) and all(
        isinstance(found, Mapping) and (is_text(found.get("why")) or is_answer(found))
        for found in value.values()
    )


def is_answer(value: Mapping[str, Any]) -> bool:
    """Whether it holds the errors of a product's results, and what its operands lose."""
    errors, operands = value.get("errors"), value.get("operands")
    return (
        isinstance(errors, Mapping)
        and all(map(is_magnitude, errors.values()))
        and isinstance(operands, Mapping)
        and all(
            isinstance(lost, list | tuple)
            and len(lost) == 3
            and (lost[0] is None or is_number(lost[0]))
            and all(x is not None and is_magnitude(x) for x in lost[1:])
            for lost in operands.values()
        )
    )


WHAT_IF = {
    **dict.fromkeys(("what_if", "op", "module"), TEXT),
    **dict.fromkeys(("step", "macs"), INTEGER),
    "recipes": Field("errors and operands, or why there are none, per recipe", is_answers),
}
"""A row of what other recipes would make of a product."""

RUN = {
    "recipe": TEXT,
    "seed": INTEGER,
    **dict.fromkeys(("final_train_loss", "valid_loss"), NUMBER),
    "diverged": BOOLEAN,
    **dict.fromkeys(("tokens_per_s", "peak_bytes_saved_for_backward"), MAGNITUDE),
    "share_in_range": Field(
        "a share or null per kind of tensor",
        lambda x: isinstance(x, Mapping) and all(map(is_magnitude, x.values())),
    ),
    "unit_scaled": optional(BOOLEAN),
}

RESULTS = {
    "data": TEXT,
    "model": TEXT,
    "steps": INTEGER,
    "runs": Field("a list of runs", lambda x: isinstance(x, list)),
}

DESCRIPTION = {
    "config": Field("an object", lambda x: isinstance(x, Mapping)),
    "data": TEXT,
}

CONFIG = {
    "recipe": TEXT,
    "steps": INTEGER,
    "existing": Field("a text or null", lambda x: x is None or is_text(x), is_required=False),
    "model": Field("an object", lambda x: isinstance(x, Mapping), is_required=False),
}

LOG_LINE = {"step": INTEGER, "loss": optional(NUMBER)}


def check(value: Any, fields: Mapping[str, Field], where: str) -> None:
    """Make sure that a value is an object with these fields; others may be there too.

    Raises:
        ValueError: it is none, or a field is missing or of another kind; one line, with `where`.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(value)}; expected an object")
    for key, field in fields.items():
        if key not in value:
            if field.is_required:
                raise ValueError(f"{where} has no {key!r}; expected {field.expected}")
        elif not field.is_met(value[key]):
            raise ValueError(f"{where}: {key} is {shown(value[key])}; expected {field.expected}")


def shown(value: Any) -> str:
    """A value as an error quotes it: as JSON has it, and short."""
    words = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return words[value]
    return reprlib.repr(dict(value) if isinstance(value, Mapping) else value)


def parse(text: bytes | str, where: str) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is none, or is nested too deep.
    """
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{where} is damaged (brackets within brackets, too deep)") from None
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error})") from error


def read_object(path: Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The object in a JSON file, with these fields.

    Raises:
        ValueError: not JSON, no object, or a field is missing or of another kind.
        OSError: the file cannot be read.
    """
    found = parse(path.read_bytes(), str(path))
    check(found, fields, str(path))
    return dict(found)

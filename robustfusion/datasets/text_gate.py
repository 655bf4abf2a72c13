"""The one gate for the text of tables and label files: decoding, quoting, clean characters."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from robustfusion._text import clean_text

# Words that programs write for a missing value; people may mean them.
_WORDS = "nan na n/a n.a. #n/a #na none null nil nat <na> <null> (null) undefined unknown - -- ?"
MISSING_WORDS = frozenset(_WORDS.split())
_BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass
class Gate:
    """The lines of a file and what became of them, for the report on a data set.

    ``lines`` counts every physical line once: "header", "rows" (also the further lines of a row
    that has several), "bad rows" and "blank". ``cells`` counts cells that were changed.
    """

    lines: Counter[str] = field(default_factory=Counter)
    cells: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def clean(self, cell: Any) -> Any:
        """Return a cell with well-formed text, also inside of lists and mappings, and count it."""
        if isinstance(cell, list):
            return [self.clean(item) for item in cell]
        if isinstance(cell, dict):
            return {self.clean(key): self.clean(item) for key, item in cell.items()}
        if not isinstance(cell, str) or (cell.isascii() and cell.isprintable()):
            return cell
        text = clean_text(cell)
        if text != cell:
            halves = any("\ud800" <= character <= "\udfff" for character in cell)
            self.cells["half an emoji" if halves else "control characters"] += 1
        return text


def decode(content: bytes, name: str, encoding: str | None = None) -> tuple[list[str], set[int]]:
    """Decode a file into lines with their ends, and the numbers of lines that are no UTF-8.

    A byte order mark decides between UTF-8, UTF-16 and UTF-32; without one a file is UTF-8. Single
    broken lines are returned as such where other lines show that the file is UTF-8.

    Raises:
        ValueError: for a file in another encoding; the message names the line and a likely one.
    """
    try:
        encoding = codecs.lookup(encoding or encoding_of(content)).name
    except LookupError:
        raise ValueError(f"encoding must name an encoding of Python, got {encoding!r}") from None
    if encoding == "utf-8" and 5 * content.count(0) > len(content):
        likely = guess_encoding(content)
        raise ValueError(f'{name} is not UTF-8 but probably {likely}: pass encoding="{likely}"')
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise ValueError(f"{name} is not {encoding}: {error}"[:200]) from None
        return _decode_lines(content, name, error)
    return _split(text), set()


def encoding_of(content: bytes) -> str:
    """Return the encoding that the byte order mark of a content names, UTF-8 without one."""
    return next((encoding for mark, encoding in _BOMS if content.startswith(mark)), "utf-8")


def _decode_lines(
    content: bytes, name: str, error: UnicodeDecodeError
) -> tuple[list[str], set[int]]:
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    lines, broken, sound = _split(text), set[int](), 0
    for index, line in enumerate(lines):
        raw = line.encode("utf-8", "surrogateescape")
        try:
            # Half an emoji is written by programs that do not check; the gate replaces it later.
            lines[index] = raw.decode("utf-8", "surrogatepass")
            sound += not raw.isascii()
        except UnicodeDecodeError:
            lines[index] = raw.decode("utf-8", "replace")
            broken.add(index + 1)
    if sound < len(broken):
        number = len(_LINE_END.findall(content[: error.start])) + 1
        raise ValueError(
            f"{name} is not UTF-8: line {number} has the byte 0x{content[error.start]:02x}. It is "
            f'probably {guess_encoding(content)}: pass encoding="{guess_encoding(content)}", or '
            "save it as UTF-8"
        )
    return lines, broken


def _split(text: str) -> list[str]:
    return io.StringIO(text, newline="").readlines()  # at \n, \r\n and \r, and at nothing else


def guess_encoding(content: bytes) -> str:
    """Name a likely encoding of a content that is not UTF-8."""
    sample = content[:200_000]
    if sample.count(0) > len(sample) // 5:
        return "utf-16-le" if sample[1::2].count(0) >= sample[::2].count(0) else "utf-16-be"
    runs = re.findall(rb"[\x80-\xff]+", sample)
    high = b"".join(runs)
    if 2 * sum(len(run) == 1 for run in runs) > len(runs):
        return "cp1252"  # accents between ASCII letters
    if 10 * sum(byte >= 0xC0 for byte in high) > 9 * len(high):
        return "cp1251"  # whole words of letters beyond ASCII
    for encoding, script, share in (
        ("shift_jis", "[\u3040-\u30ff]", 0.3),
        ("euc_jp", "[\u3040-\u30ff]", 0.3),
        ("cp949", "[\uac00-\ud7a3]", 0.9),
        ("gb18030", "[\u4e00-\u9fff]", 0.6),
    ):
        text = sample.decode(encoding, "ignore")
        beyond = [character for character in text if not character.isascii()]
        if len(re.findall(script, text)) > share * len(beyond) > len(high) // 9:
            return encoding
    return "cp1252"


def read_cells(
    lines: Sequence[str], broken: set[int], gate: Gate, *, tabs: bool
) -> tuple[list[str], Iterator[list[str] | str]]:
    """Return the column names and an iterator of rows: cells, or why they are no row.

    With ``tabs`` a cell ends at a tab and quotation marks are letters. Otherwise commas separate
    cells, or what the header uses instead: semicolons, tabs or bars. A row that is ambiguous over
    lines by a quotation mark is one row only if those lines are no rows by themselves.
    """
    start = 0
    while start < len(lines) and not lines[start].strip():
        start += 1
    delimiter = "\t"
    if start < len(lines) and not tabs:
        if match := re.fullmatch(r"(?i)sep=(.)\s*", lines[start]):  # a hint of Excel
            start += 1
        header = "".join(lines[start : start + 1])
        delimiter = match[1] if match else next((d for d in ",;\t|" if d in header), ",")
        if delimiter != ",":
            gate.warnings.append(f"cells are separated by {delimiter!r}, as in the header")
    quoting: Any = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = _Reader(lines, delimiter, quoting)
    names, after, _ = reader.record(start) if start < len(lines) else ([], start, False)
    gate.lines["blank"] += sum(not line.strip() for line in lines[:start])
    gate.lines["header"] += after - gate.lines["blank"]
    return [gate.clean(name) for name in names], _rows(reader, names, after, broken, gate)


def _rows(
    reader: "_Reader", names: list[str], start: int, broken: set[int], gate: Gate
) -> Iterator[list[str] | str]:
    ambiguous: list[str] = []
    while start < len(reader.lines):
        cells, end, sound = reader.record(start)
        number = start + 1
        if not any(line.strip("\r\n ") for line in reader.lines[start:end]):
            gate.lines["blank"] += end - start
            start = end
            continue
        sound = sound and len(cells) == len(names)
        verdict, count = reader.swallowed(start, end, len(names), sound)
        row: list[str] | str = cells
        if verdict == "letter":
            row = f"in line {number} a quotation mark opens a cell that does not end there"
            end = number
        elif verdict == "rows":
            row = (
                f"a quoted cell holds the lines {number} to {end}, {count} of which are rows by "
                "themselves: is a quotation mark missing?"
            )
        elif unreadable := broken.intersection(range(number, end + 1)):
            row = f"line {min(unreadable)} is not UTF-8"
        elif len(cells) != len(names):
            row = f"expected {len(names)} cells, got {len(cells)}"
        elif cells == names:
            row = "the header occurs again"
        elif verdict == "maybe":
            ambiguous.append(f"{number} to {end}")
        gate.lines["bad rows" if isinstance(row, str) else "rows"] += end - start
        yield row
        start = end
    if ambiguous:
        some = ", ".join(ambiguous[:5])
        gate.warnings.append(
            f"{len(ambiguous)} rows are quoted over lines that may be rows: {some}"
        )


class _Reader:
    """Records of a delimited file, read from any line on."""

    def __init__(self, lines: Sequence[str], delimiter: str, quoting: Any) -> None:
        self.lines, self.options = lines, {"delimiter": delimiter, "quoting": quoting}

    def record(self, start: int) -> tuple[list[str], int, bool]:
        """Return the cells from a line on, the line after them, and whether the quotes fit."""
        for strict in (True, False):
            reader = csv.reader(
                (self.lines[index] for index in range(start, len(self.lines))),
                strict=strict,
                **self.options,
            )
            try:
                cells = next(reader, [])
            except csv.Error:
                if not strict:
                    return [self.lines[start]], start + 1, False
                continue
            return cells, start + reader.line_num, strict
        raise AssertionError

    def swallowed(self, start: int, end: int, width: int, sound: bool) -> tuple[str, int]:
        """Return what the lines of one record are, and how many after the first may be rows.

        "letter": the quotation mark of the first line is a letter. "rows": quotes fit, and still
        most lines are rows by themselves. "maybe": some are. "" else.
        """
        if end - start < 2:
            return "", 0
        first, *middle, last = (self.is_row(line, width) for line in self.lines[start:end])
        count = sum(middle) + last
        if not sound:
            return ("letter" if count else ""), count
        # The last line of a cell of several lines that is the first of its row always fits.
        if 2 * count >= end - start and (sum(middle) > 2 or (first and sum(middle))):
            return "rows", count
        return ("maybe" if any(middle) or (first and last) else ""), count

    def is_row(self, line: str, width: int) -> bool:
        """Return whether a line by itself has the right number of cells, quoted or not."""
        for quoting in (self.options["quoting"], csv.QUOTE_NONE):
            with suppress(csv.Error):
                options = {**self.options, "quoting": quoting}
                if len(next(csv.reader([line], **options), [])) == width > 1:
                    return True
        return False

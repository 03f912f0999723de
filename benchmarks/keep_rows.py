"""Keep the verdicts and lengths of an evaluation without its texts, for `conclip compare`.

    python benchmarks/keep_rows.py RUN docs/measured/NAME.parquet
    conclip compare docs/measured/BASE.parquet docs/measured/NAME.parquet

Questions, gold answers and responses are left out: the repository holds no benchmark's text. What is left is outcome and
length of each response, by the problem's number in its file.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from conclip.evaluation.rows import read_rows, write_parquet
from conclip.types import EvalRow


def without_texts(row: EvalRow) -> EvalRow:
    return replace(row, text="", answer="", extracted=None, lenient_extracted=None, reasoning=None, key="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that evaluated, or a file with its rows")
    parser.add_argument("file", type=Path, help="the file to write")
    options = parser.parse_args()
    rows = [without_texts(row) for row in read_rows(options.run)]
    options.file.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(rows, options.file)
    print(f"{len(rows)} rows, {options.file.stat().st_size / 1024:.0f} KiB: {options.file}")


if __name__ == "__main__":
    main()

"""The table of docs/kernels.md.

    python -m benchmarks.gpu.cubin_table 80.json 90.json

prints it from what ``python -m benchmarks.gpu.cubins`` wrote. It needs no Triton.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_HEAD = (
    "| kernel | case | registers | spilled | shared KiB | warps | programs on a multiprocessor |\n"
    "|---|---|---:|---:|---:|---:|---:|\n"
)


def cubin_table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown, one line for each different variant in bfloat16, or float32 where there is no other."""
    lines = {_line(row): None for row in rows if row["dtype"] != "float16"}
    return _HEAD + "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    figures = (row["registers"], row["spill_bytes"], f"{row['shared_bytes'] / 1024:.1f}", row["num_warps"])
    cells = (f"`{row['kernel']}`", row["case"], *figures, row["resident_programs"])
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rows = json.loads(Path(name).read_text())
        print(f"### sm_{rows[0]['capability']}\n\n{cubin_table(rows)}")

"""The preprocessing benchmark measures every size that it names."""

import json
import subprocess
import sys

SIZES = [(640, 480), (1920, 1080), (4000, 3000)]


def test_prints_a_table_and_one_json_document() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vitedge.benchmarks.preprocessing"], capture_output=True, text=True, check=True
    )
    *table, last = result.stdout.splitlines()
    runs = json.loads(last)["runs"]
    assert len(table) == 1 + len(SIZES)
    assert [(run["width"], run["height"]) for run in runs] == SIZES
    assert all(0 < run["median_ms"] <= run["p90_ms"] for run in runs)

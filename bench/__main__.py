# SPDX-FileCopyrightText: The qsd authors
# SPDX-License-Identifier: MIT
"""Run the workloads on both daemons in turn and print a table.

    python -m bench [--cpu] [--only TEXT] [--rounds N] [--seconds S] [--json FILE] [--folder DIR]

Every figure is the median of the rounds; the ratio says how many times faster this daemon is.  With
`--cpu` the figures are microseconds of the daemon's processor time for one operation, which tell
the truth even on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.workloads import Figure, Workload, table

ROOT = Path(__file__).resolve().parent.parent


def measure(
    workload: Workload, sides: dict[str, list[str]], folder: Path, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure one workload in turn on all sides."""
    figures: dict[str, list[Figure]] = {name: [] for name in sides}
    failed: dict[str, str] = {}
    for number in range(rounds):
        # What the first one pays for, cold caches and fresh memory, the second one has for free.
        for name, command in list(sides.items())[:: -1 if number % 2 else 1]:
            if name in failed:
                continue
            try:
                figures[name].append(workload.run(command, folder, seconds))
            except Exception as exc:
                text = getattr(exc, "stderr", None) or str(exc)
                failed[name] = (
                    str(text).strip().splitlines()[-1] if str(text).strip() else repr(exc)
                )
    result: dict[str, Any] = {"name": workload.name, "unit": workload.unit, "aim": workload.aim}
    for name, values in figures.items():
        result[name] = statistics.median(value.rate for value in values) if values else None
        costs = [value.cost_us for value in values if value.cost_us]
        result[f"{name}_cost_us"] = statistics.median(costs) if costs else None
    result["failed"] = failed
    ours, theirs = result.get("qsd"), result.get("reference")
    result["ratio"] = ours / theirs if ours and theirs else None
    ours, theirs = result.get("qsd_cost_us"), result.get("reference_cost_us")
    result["cost_ratio"] = theirs / ours if ours and theirs else None
    return result


def line(result: dict[str, Any], cpu: bool) -> str:
    """Format a row."""
    cpu = cpu and result.get("qsd_cost_us") is not None  # memory and latency have no such cost
    suffix = "_cost_us" if cpu else ""
    ratio = result["cost_ratio" if cpu else "ratio"]

    def figure(value: float | None) -> str:
        if value is None:
            return "-"
        if not cpu and result["unit"].startswith("1/"):
            scale = 1e6 if result["unit"] == "1/us" else 1
            return f"{scale / value:.1f} {result['unit'][2:]}"
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    aim = f"{result['aim']:g}" if result["aim"] else ""
    text = (
        f"| {result['name']:40} | {figure(result.get('qsd' + suffix)):>12} "
        f"| {figure(result.get('reference' + suffix)):>12} "
        f"| {f'{ratio:.2f}' if ratio else '-':>6} | {aim:>4} |"
    )
    for name, why in result["failed"].items():
        text += f" {name} failed: {why}"
    return text


def main() -> int:
    """Parse options, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument(
        "--cpu", action="store_true", help="show processor time of the daemon per operation"
    )
    parser.add_argument("--only", action="append", help="measure rows that contain this text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the images are kept between runs")
    parser.add_argument("--subject", default=f"{sys.executable} -m qsd")
    parser.add_argument("--reference", default="qemu-storage-daemon")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    sides = {"qsd": shlex.split(options.subject), "reference": shlex.split(options.reference)}
    rows = [
        row for row in table() if not options.only or any(text in row.name for text in options.only)
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    print(f"commit {commit}, Python {platform.python_version()}, {os.cpu_count()} cores", end="")
    print(", us of processor time per operation" if options.cpu else "")
    print(f"| {'workload':40} | {'qsd':>12} | {'C daemon':>12} | {'ratio':>6} | {'aim':>4} |")
    print(f"| {'-' * 40} | {'-' * 12} | {'-' * 12} | {'-' * 6} | {'-' * 4} |")
    results = []
    with tempfile.TemporaryDirectory(prefix="qsd-bench-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            results.append(measure(row, sides, folder, options.rounds, options.seconds))
            print(line(results[-1], options.cpu), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"commit": commit, "rows": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measure time and memory, ours and anomalib's: ``python scripts/benchmark.py train --pairs 3``."""

from padim_bottle.benchmark import benchmark_command

if __name__ == "__main__":
    raise SystemExit(benchmark_command())

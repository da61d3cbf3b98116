"""Compare experiments over their seeds: ``python scripts/compare.py results/padim_resnet18 results/...``."""

from padim_bottle.commands.compare import compare_command

if __name__ == "__main__":
    raise SystemExit(compare_command())

"""Run experiments over seeds and compare them: ``python scripts/sweep.py --config configs/sweep.yaml``."""

from padim_bottle.commands.sweep import sweep_command

if __name__ == "__main__":
    raise SystemExit(sweep_command())

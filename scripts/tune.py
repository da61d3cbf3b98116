"""Choose a configuration without a defect: ``python scripts/tune.py --config configs/X.yaml --grid ...``."""

from padim_bottle.commands.tune import tune_command

if __name__ == "__main__":
    raise SystemExit(tune_command())

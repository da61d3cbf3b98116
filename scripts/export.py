"""Export a fitted model and prove the copy: ``python scripts/export.py --model results/padim_resnet18/seed_42``."""

from padim_bottle.commands.export import export_command

if __name__ == "__main__":
    raise SystemExit(export_command())

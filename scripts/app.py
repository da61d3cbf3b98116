"""Try fitted models in a browser: ``python scripts/app.py --model results/padim_resnet18/seed_42``."""

from padim_bottle.commands.app import app_command

if __name__ == "__main__":
    raise SystemExit(app_command())

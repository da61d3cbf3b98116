"""Write report.html of a finished run again: ``python scripts/report.py results/padim_resnet18/seed_42``."""

from padim_bottle.commands.report import report_command

if __name__ == "__main__":
    raise SystemExit(report_command())

"""Write report.html of a finished run again: ``python scripts/report.py results/padim_resnet18/seed_42``."""

from door import enter

if __name__ == "__main__":
    enter("report")

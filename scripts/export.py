"""Export a fitted model and prove the copy: ``python scripts/export.py --model results/padim_resnet18/seed_42``."""

from door import enter

if __name__ == "__main__":
    enter("export")

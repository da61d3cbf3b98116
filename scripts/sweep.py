"""Run experiments over seeds and compare them: ``python scripts/sweep.py --config configs/sweep.yaml``."""

from door import enter

if __name__ == "__main__":
    enter("sweep")

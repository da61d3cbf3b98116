"""Compare experiments over their seeds: ``python scripts/compare.py results/padim_resnet18 results/...``."""

from door import enter

if __name__ == "__main__":
    enter("compare")

"""Choose a configuration without a defect: ``python scripts/tune.py --config configs/X.yaml --grid ...``."""

from door import enter

if __name__ == "__main__":
    enter("tune")

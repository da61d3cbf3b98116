"""Try fitted models in a browser: ``python scripts/app.py --model results/padim_resnet18/seed_42``."""

from door import enter

if __name__ == "__main__":
    enter("app")

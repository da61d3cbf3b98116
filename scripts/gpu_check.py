"""Check the GPU against the CPU, and against anomalib: ``python scripts/gpu_check.py``."""

from padim_bottle.gpu_check import gpu_check_command

if __name__ == "__main__":
    raise SystemExit(gpu_check_command())

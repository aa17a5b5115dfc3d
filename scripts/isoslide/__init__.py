"""Isoslide: whole-slide images to task models whose predictions hold across scanners."""

import os

__version__ = "0.1.0"

# MKL, which multiplies PyTorch's matrices, promises the same bits from run to run only if told so before its first
# product; it costs nothing that we could measure. Number of threads and kind of processor still count.
os.environ.setdefault("MKL_CBWR", "AUTO")

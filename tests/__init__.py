"""Tests. What is set here holds before any of them imports a library."""

import os

# Threads of PyTorch and BLAS spin while they wait for each other on a busy machine. Workers have one each, too.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

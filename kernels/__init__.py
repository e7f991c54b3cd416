"""Triton kernels, one file an operation; what is shared between them is in ``philox``.

Importing this package imports triton. The operations' public face is :mod:`ansn.ops`, which imports a kernel when
it first runs it.
"""

"""Imported in a process that moments.cpp is preloaded into: tells it of every step."""

import ctypes

from spectramind_fused.optim import FusedStep

tell = ctypes.CDLL(None).spectramind_step
step = FusedStep.step


def told(self, *arguments, **options):
    tell()
    return step(self, *arguments, **options)


FusedStep.step = told

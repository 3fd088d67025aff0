"""``run.compile``: every block's forward and backward compiled by torch's inductor, one graph for all blocks.

A block is where ZeRO-3 gathers weights as a whole (``Engine``'s ``whole``), before its forward is entered and after it
was left: inside the graph there is no hook, and every weight is there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from components.errors import VitrailError
from components.learning.vit import VisionTransformer

BACKEND = "inductor"


def require_compiler(device: torch.device) -> None:
    """Nothing when inductor finds what it needs for ``device``.

    Raises:
        VitrailError: there is no compiler.
    """
    cpp = os.environ.get("CXX") or next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    if device.type == "cpu" and (cpp is None or shutil.which(cpp) is None):
        raise VitrailError(
            "run.compile: needs a C++ compiler (g++, clang++ or $CXX), found none; install one or set it to false"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise VitrailError("run.compile: needs the package triton on a GPU, found none; install it or set it to false")


def compile_blocks(device: torch.device, *backbones: VisionTransformer) -> None:
    """Compile the blocks of ``backbones`` at their first pass, for each size of batch that comes along.

    Call it when a module is where it will stay: a copy of a compiled module would compute with the first one's weights.

    Raises:
        VitrailError: there is no compiler for ``device``.
    """
    require_compiler(device)
    for backbone in backbones:
        backbone.short_last_block = False  # the number of its rows differs from step to step: each would be compiled
        for block in backbone.blocks:
            # The module stays uncompiled, hooks and all; an attribute goes before the class's method.
            block.forward = torch.compile(block.forward, dynamic=False, backend=BACKEND)

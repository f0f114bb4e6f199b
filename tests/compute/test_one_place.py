"""What depends on the kind of device is decided in compute/ and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ELSEWHERE = (
    *("cache", "commands", "demo", "errors", "pipeline", "plugins", "report", "stats", "train"),
    *("benchmarks", "examples"),
)
MODULES = {"cuda", "mps", "xpu", "distributed", "backends", "amp", "autocast"}
"""Below ``torch``."""
NAMES = {
    *("allow_tf32", "set_float32_matmul_precision", "use_deterministic_algorithms"),
    *("fork_rng", "get_rng_state", "set_rng_state", "manual_seed_all", "default_generator"),
    *("is_cuda", "is_mps", "pin_memory", "record_stream", "non_blocking"),
    *("DistributedDataParallel", "init_process_group", "GradScaler"),
}
VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
"""Of launchers, and every one that begins with SLURM_."""


def decisions(text: str) -> list[tuple[int, str]]:
    """Lines that ask torch or a launcher where and how to compute."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and (
            node.attr in NAMES or (ast.unparse(node.value) == "torch" and node.attr in MODULES)
        ):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.keyword) and node.arg in NAMES:
            found.append((node.value.lineno, node.arg))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [f"{module}.{name.name}".strip(".") for name in node.names]
            torch_parts = [name.split(".")[1:] for name in names if name.startswith("torch.")]
            found += [
                (node.lineno, part)
                for parts in torch_parts
                for part in parts
                if part in MODULES | NAMES
            ]
        elif isinstance(node, ast.Constant) and _is_launchers(node.value):
            found.append((node.lineno, str(node.value)))
    return found


def _is_launchers(value: object) -> bool:
    return isinstance(value, str) and (value in VARIABLES or value.startswith("SLURM_"))


def test_devices_precision_and_ranks_are_decided_in_one_place() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for room in ELSEWHERE
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, name in decisions(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.cuda.synchronize()",
        "with torch.autocast('cpu'): pass",
        "torch.backends.cudnn.allow_tf32 = True",
        "import torch.distributed as dist",
        "from torch import cuda",
        "from torch.nn.parallel import DistributedDataParallel",
        "x.to(device, non_blocking=True)",
        "if x.is_cuda: pass",
        "torch.set_float32_matmul_precision('high')",
        "os.environ.get('LOCAL_RANK', '0')",
        "os.environ['SLURM_PROCID']",
    ],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert decisions(text)


def test_the_search_leaves_other_words_alone() -> None:
    text = "import torch\nfrom torch import nn\ntorch.compile(f)\nthreading.Event()\nx = 'cuda'"
    assert decisions(text) == []

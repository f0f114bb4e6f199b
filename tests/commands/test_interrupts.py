"""Ctrl-C is answered at once, whatever is being done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phistill.cache import Cache
from phistill.compute.signals import StopRequest
from phistill.stats import fit_stats

CacheFactory = Callable[..., Cache]

INTERRUPTED_AT_AN_IMPORT = """
import os, signal, sys
from phistill.__main__ import main

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this test was started with
sys.meta_path.insert(0, Interrupt())
sys.argv = ["phistill", *{arguments!r}]
main()
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("click", "Interrupted. Nothing had begun."),
        ("phistill.commands", "Interrupted. Nothing had begun."),
        ("torch", "Stopping ..."),
        ("timm", "Stopping ..."),
    ],
)
def test_ctrl_c_is_answered_while_libraries_are_loaded(
    make_cache: CacheFactory, tmp_path: Path, module: str, words: str
) -> None:
    cache = make_cache()
    fit_stats(cache)
    arguments = ["train", str(cache.path), "--out", str(tmp_path / "run"), "--device", "cpu"]
    code = INTERRUPTED_AT_AN_IMPORT.format(module=module, arguments=arguments)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 130, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_nothing_is_loaded_before_ctrl_c_has_an_answer() -> None:
    code = (
        "import sys; before = {*sys.modules, 'signal', 'types', 'enum'}; import phistill.__main__; "
        "print(sorted(set(sys.modules) - before))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ended.stdout.strip()
    assert "phistill.__main__" in loaded
    assert not [name for name in ("logging", "importlib.util", "lazy_loader") if name in loaded]


def test_ctrl_c_during_a_long_step_is_answered_before_the_step_ends(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert "Stopping after this step" in capfd.readouterr().err
    assert stop.number == signal.SIGINT

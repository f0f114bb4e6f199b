"""What is misspelt is refused before torch is loaded: that takes seconds. Verbs refuse the rest.

Names of models are looked for in the files of timm and open_clip: to import them imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phistill.train import TrainConfig


def refuse_train_mistakes(caches: Sequence[str], configs: Sequence[TrainConfig]) -> None:
    """UsageError for a cache that is none, a teacher it lacks, a normalizer or student unknown."""
    from phistill import plugins
    from phistill.cache.joined import open_caches
    from phistill.stats import METHODS
    from phistill.stats.normalizer.methods import unknown_method

    opened = open_caches(tuple(caches)).caches
    for config in configs:
        if config.normalizer not in METHODS:
            raise unknown_method(config.normalizer)
        for cache in opened:
            for teacher in config.teachers:
                cache.teacher(teacher)
        for field in ("head", "patch_loss", "summary_loss", "row_filter"):
            if ":" in (name := getattr(config, field)):
                plugins.load(name, field)
    for name in {config.student for config in configs}:
        if ":" not in name:
            _refuse_timm_model(name, f"student={name!r} is not a timm model.")


def refuse_teacher_mistakes(teachers: Sequence[str]) -> None:
    """UsageError for a source that nobody registered, and models of timm and the demo."""
    from phistill import plugins
    from phistill.pipeline.teachers.spec import TeacherSpec, refuse_unknown_source

    for text in teachers:
        spec = TeacherSpec.parse(text)
        refuse_unknown_source(spec.source)
        if spec.source == "demo":
            from phistill.demo.teachers import refuse_unknown

            refuse_unknown(spec.model)
        if spec.source == plugins.MODULE:
            plugins.load(spec.model, plugins.MODULE)
        if spec.source == "timm" and ":" not in spec.model:
            _refuse_timm_model(spec.model, f"timm has no model {spec.model!r}.")
        if spec.source == "open_clip" and ":" not in spec.model:
            _refuse_open_clip_model(spec.model.partition("/")[0])


def refuse_no_run(run: Path) -> None:
    """UsageError where no run is."""
    from phistill.errors import UsageError, did_you_mean

    if run.exists():
        from phistill.train.checkpoint import FOLDER, nothing_in

        if not (run / FOLDER).is_dir():
            raise nothing_in(run)
    else:
        near = did_you_mean(run.name, [path.name for path in run.absolute().parent.glob("*")])
        raise UsageError(
            f"{run} has no checkpoint: nothing is there.{near} "
            f"Make one with `phistill train CACHE --out {run}`."
        )


def _refuse_open_clip_model(architecture: str) -> None:
    from importlib.util import find_spec

    from phistill.errors import UsageError, did_you_mean

    package = find_spec("open_clip")
    if package is None or package.origin is None:
        return
    known = {path.stem for path in Path(package.origin).parent.glob("model_configs/*.json")}
    if architecture not in known:
        near = did_you_mean(architecture, known)
        raise UsageError(f"open_clip has no model {architecture!r}.{near}")


def _refuse_timm_model(name: str, refusal: str) -> None:
    import re
    from importlib.util import find_spec

    from phistill.errors import UsageError, did_you_mean

    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        return
    files = sorted(Path(timm.origin).parent.glob("models/*.py"))
    source = "\n".join(path.read_text("utf-8") for path in files)
    architecture = name.partition(".")[0].partition("@")[0]
    if not re.search(rf"\b{re.escape(architecture)}\b", source):
        known = re.findall(r"@register_model\s+def (\w+)", source)
        raise UsageError(f"{refusal}{did_you_mean(architecture, known)}")

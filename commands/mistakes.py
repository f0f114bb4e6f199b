"""What is misspelt is refused before torch is loaded: that takes seconds. Verbs refuse the rest.

Names of models are looked for in the files of timm and open_clip: to import them imports torch.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phistill.cache import Split
    from phistill.pipeline.teachers.spec import TeacherSpec
    from phistill.train import TrainConfig


def refuse_train_mistakes(caches: Sequence[str], configs: Sequence[TrainConfig]) -> None:
    """UsageError for a cache that is none, a teacher it lacks, a normalizer or student unknown,
    a logger not installed; MissingMoments before fit-stats."""
    from phistill import plugins
    from phistill.cache.joined import open_caches
    from phistill.stats import METHODS
    from phistill.stats.fit.loading import refuse_missing
    from phistill.stats.normalizer.methods import unknown_method
    from phistill.train.metrics import refuse_missing_loggers

    opened = open_caches(tuple(caches)).caches
    for config in configs:
        if config.normalizer not in METHODS:
            raise unknown_method(config.normalizer)
        for one in opened:
            for teacher in config.teachers:
                one.teacher(teacher)
        for field in ("head", "patch_loss", "summary_loss", "row_filter"):
            if ":" in (name := getattr(config, field)):
                plugins.load(name, field)
        refuse_missing_loggers(config)
    for name in {config.student for config in configs}:
        if ":" not in name:
            _refuse_timm_model(name, f"student={name!r} is not a timm model.")
    for one in opened:
        wanted = [name for config in configs for name in config.teachers or one.teachers]
        for teacher in dict.fromkeys(wanted):
            refuse_missing(one, teacher, "patches")


def refuse_as_out(out: Path, config: TrainConfig, *, extend: bool) -> None:
    """UsageError for what is no run folder, RunMismatch for that of a run with other settings."""
    from phistill import cache as store
    from phistill.errors import UsageError
    from phistill.train.checkpoint import facts_of_the_run

    if store.exists(out):
        raise UsageError(f"{out} is a cache. Choose another --out, such as runs/{out.stem}.")
    facts_of_the_run(out, config, extend=extend)


def refuse_image_mistakes(images: str) -> None:
    """UsageError for images that are not there, an empty folder, and a cache in their place."""
    from phistill.pipeline.images.open_source import has_braces, is_cache, is_plugin, open_source
    from phistill.pipeline.images.source import SUFFIXES
    from phistill.pipeline.images.tars.fetched_tar import is_remote
    from phistill.pipeline.images.tree import CONTAINERS

    path = Path(images)
    if is_remote(images) or is_plugin(images) or has_braces(images) or path.is_file():
        return  # opening it costs more than a look
    suffixes = (*SUFFIXES, *CONTAINERS)
    if is_cache(path) or not any(
        found.name.lower().endswith(suffixes) for found in path.rglob("*")
    ):
        source = open_source(images)
        source.records()
        source.close()


def refuse_teacher_mistakes(teachers: Sequence[str]) -> None:
    """UsageError for a source that nobody registered, and models and options of ours."""
    from phistill import plugins
    from phistill.errors import UsageError
    from phistill.pipeline.teachers.options import OF_SOURCE, take_options
    from phistill.pipeline.teachers.spec import TeacherSpec, refuse_unknown_source

    for text in teachers:
        try:
            spec = TeacherSpec.parse(text)
        except UsageError as error:
            raise UsageError(f"{error}{_with_source(text)}") from None
        refuse_unknown_source(spec.source)
        known = OF_SOURCE.get(spec.source, ())
        if spec.source == "demo":
            from phistill.demo.teachers import options_of, refuse_unknown

            refuse_unknown(spec.model)
            known = options_of(spec.model)
        if spec.source == plugins.MODULE:
            plugins.load(spec.model, plugins.MODULE)
        if spec.source == "timm" and ":" not in spec.model:
            _refuse_timm_model(spec.model, f"timm has no model {spec.model!r}.")
        if spec.source == "open_clip" and ":" not in spec.model:
            _refuse_open_clip_model(spec.model.partition("/")[0])
        if known:
            take_options(_own_options(spec), known, f"{spec.source}:{spec.model}")


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


def refuse_nothing_to_evaluate(run: Path, caches: Sequence[str], split: Split) -> None:
    """UsageError for a cache that is none, IncompleteCache where ``split`` has no row."""
    import json

    from phistill.cache.joined import open_caches
    from phistill.errors import IncompleteCache
    from phistill.train.checkpoint import caches_of_run

    facts = json.loads((run / "config.json").read_bytes())
    teachers = list(facts["teachers"])
    opened = open_caches(tuple(caches or caches_of_run(facts)))
    if not any(len(one.rows(teachers, split)) for one in opened.caches):
        raise IncompleteCache(
            f"{opened.location} has no {split} row of {', '.join(teachers)}. Add --split train to "
            "see the rows that were learnt, or extract a cache with a larger --holdout."
        )


def setting_advice(option: str, options: Collection[str]) -> str:
    """What to type instead of an option of ``train`` that there is not."""
    from phistill.errors import suggestion
    from phistill.train.config import nearest_settings

    typed = []
    for name in nearest_settings(option.lstrip("-").replace("-", "_")):
        flag = f"--{name.replace('_', '-')}"
        typed.append(flag if flag in options else f"--set {name}=VALUE")
    return suggestion(typed)


def _own_options(spec: TeacherSpec) -> dict[str, str]:
    """The options that the source itself reads."""
    from phistill.pipeline.teachers.options import COMMON

    return {key: value for key, value in spec.options if key not in COMMON}


def _with_source(text: str) -> str:
    """`` Did you mean timm:vit_small_patch16_224?`` for a model without its source."""
    from phistill.demo.teachers import NAMES
    from phistill.errors import suggestion

    name, equals, rest = text.partition("=")
    model, mark, options = (rest if equals else text).partition("?")
    architecture = model.partition(".")[0].replace("timm/", "")
    sources = [f"demo:{model}"] if model in NAMES else []
    if architecture in _timm_models():
        sources.append(f"timm:{model.replace('timm/', '')}")
    if model.partition("/")[0] in _open_clip_models():
        sources.append(f"open_clip:{model}")
    before, after = f"{name}=" if equals else "", f"{mark}{options}"
    return suggestion([f"{before}{source}{after}" for source in sources])


def _refuse_open_clip_model(architecture: str) -> None:
    from phistill.errors import UsageError, did_you_mean

    known = _open_clip_models()
    if known and architecture not in known:
        near = did_you_mean(architecture, known)
        raise UsageError(f"open_clip has no model {architecture!r}.{near}")


def _refuse_timm_model(name: str, refusal: str) -> None:
    from phistill.errors import UsageError, did_you_mean, suggestion

    known = _timm_models()
    architecture = name.partition(".")[0].partition("@")[0]
    if known and architecture not in known:
        near = did_you_mean(architecture, known)
        within = sorted((one for one in known if architecture in one), key=len)
        raise UsageError(f"{refusal}{near or suggestion(within[:3])}")


@functools.cache
def _open_clip_models() -> frozenset[str]:
    """Architectures, without importing open_clip; empty where it is not to be found."""
    from importlib.util import find_spec

    package = find_spec("open_clip")
    if package is None or package.origin is None:
        return frozenset()
    files = Path(package.origin).parent.glob("model_configs/*.json")
    return frozenset(path.stem for path in files)


@functools.cache
def _timm_models() -> frozenset[str]:
    """Architectures and their former names, without importing timm; empty where it is not."""
    import re
    from importlib.util import find_spec

    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        return frozenset()
    names: set[str] = set()
    for path in Path(timm.origin).parent.glob("models/*.py"):
        source = path.read_text("utf-8")
        names.update(re.findall(r"@register_model\s+def (\w+)", source))
        for former in re.findall(r"register_model_deprecations\((.*?)\n\}\)", source, re.DOTALL):
            names.update(re.findall(r"^\s+['\"](\w+)", former, re.MULTILINE))
    return frozenset(names)

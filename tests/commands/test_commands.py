"""What a person types, and what they read when it is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from phistill.cache import Cache
from phistill.cli import main
from phistill.errors import counted

CacheFactory = Callable[..., Cache]


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_help_loads_neither_torch_nor_zarr() -> None:
    code = (
        "import sys\nfrom phistill.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'zarr', 'timm', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 4
    first = main.commands[command].help
    assert first is not None
    assert first.strip().split("\n")[0].endswith((".", ":"))


def test_help_lists_every_command_once_under_what_it_is_for_with_a_whole_sentence() -> None:
    _, out, _ = run("--help")
    assert {"Make:", "Look:", "Learn:", "Change:", "Exchange:"} < set(out.splitlines())
    assert out.count("\n  export ") == 1
    words = " ".join(out.split())
    for name, command in main.commands.items():
        assert command.help is not None
        sentence = command.help.strip().split("\n")[0]
        assert f" {name} {sentence}" in words


def test_weights_of_caches_and_of_losses_cannot_be_mistaken_for_each_other(tmp_path: Path) -> None:
    code, _, err = run("train", tmp_path, "--out", tmp_path / "r", "--weights", "0.7,0.3")
    assert code == 2
    assert "No such option" in err
    assert "--cache-weights" in run("train", "--help")[1]


def test_an_unknown_teacher_source_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    code, _, err = run("extract", tmp_path, "--cache", tmp_path / "c", "--teacher", "nope:x")
    assert code == 2
    assert "known are demo, module, open_clip, timm, transformers" in err


def test_an_unknown_demo_teacher_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    code, _, err = run("extract", tmp_path, "--cache", tmp_path / "c", "--teacher", "demo:x")
    assert code == 2
    assert "clip, ssl, mask" in err


def test_an_unknown_normalizer_lists_the_known_ones(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache()
    assert run("fit-stats", cache.path)[0] == 0
    code, _, err = run("train", cache.path, "--out", tmp_path / "r", "--normalizer", "phi")
    assert code == 2
    assert "phi-s" in err
    assert "standardize" in err


def test_a_path_that_is_no_cache_says_which_command_makes_one(tmp_path: Path) -> None:
    code, _, err = run("fit-stats", tmp_path)
    assert code == 2
    assert "is not a cache" in err
    assert f"phistill extract IMAGES --cache {tmp_path} " in err


def test_images_given_as_a_cache_are_to_be_extracted_into_another_place(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    for images in (tmp_path, tmp_path / "x.png"):
        code, _, err = run("train", images, "--out", tmp_path / "run")
        assert code == 2
        assert f"phistill extract {images} --cache my.cache --teacher" in err


def test_a_cache_whose_root_is_not_there_is_not_made_anew(make_cache: CacheFactory) -> None:
    cache = make_cache()
    (cache.path / "zarr.json").unlink()
    code, _, err = run("inspect", cache.path)
    assert code == 2
    assert "put zarr.json back" in err


@pytest.mark.parametrize("part", ["zarr.json", "commits/a/000001.json", "a/patches shard"])
def test_what_mends_a_damaged_cache_names_it(make_cache: CacheFactory, part: str) -> None:
    cache = make_cache()
    damaged = cache.path / (part if "." in part else _shard_of(cache))
    damaged.write_bytes(damaged.read_bytes().replace(b'"seed": 0', b'"seed": 1')[:-1] + b"?")
    code, _, err = run("fit-stats", cache.path)
    assert code == 1
    assert "CACHE" not in err
    assert str(cache.path) in err
    assert (f"--cache {cache.path} --repair" in err) == (part != "zarr.json")


def test_one_of_a_thing_is_said_in_the_singular(make_cache: CacheFactory) -> None:
    assert [counted(n, "shard") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]
    assert counted(2, "pass", "passes") == "2 passes"
    code, out, _ = run("remove-images", make_cache().path, "image-00003")
    assert (code, "1 row removed" in out) == (0, True)


def test_a_merge_that_had_nothing_to_copy_says_so(make_cache: CacheFactory, tmp_path: Path) -> None:
    cache, copy = make_cache(), tmp_path / "copy"
    shutil.copytree(cache.path, copy)
    cache.forget_shard("a", 1)
    said = [run("merge", cache.path, copy)[1].splitlines()[0] for _ in range(2)]
    assert said[0] == f"{cache.path}: 1 shard of pixels and teachers copied from {copy}."
    assert said[1] == f"{cache.path}: nothing new to copy from {copy}."


def test_a_folder_in_the_place_of_a_file_is_no_full_disk(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache()
    assert run("fit-stats", cache.path)[0] == 0
    (tmp_path / "here").mkdir()
    code, _, err = run("export-normalizer", cache.path, "a", tmp_path / "here")
    assert code == 1
    assert "Choose another path" in err
    assert "Free some space" not in err


def _shard_of(cache: Cache) -> str:
    return next(p for p in cache.commits("a")[1].files if "patches" in p)


def test_an_unfinished_cache_says_which_command_finishes_it(make_cache: CacheFactory) -> None:
    cache = make_cache()
    cache.forget_shard("a", 1)
    code, _, err = run("fit-stats", cache.path)
    assert code == 1
    assert "a has 3 of 4 shards" in err
    assert f"phistill extract IMAGES --cache {cache.path}" in err


def test_training_before_fit_stats_names_it(make_cache: CacheFactory, tmp_path: Path) -> None:
    code, _, err = run("train", make_cache().path, "--out", tmp_path / "r")
    assert code == 1
    assert "phistill fit-stats" in err


def test_an_unknown_setting_suggests_the_right_one(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    code, _, err = run("train", make_cache().path, "--out", tmp_path, "--set", "epoch=3")
    assert code == 2
    assert "Did you mean epochs" in err


def test_verify_exits_with_one_and_names_the_repair(make_cache: CacheFactory) -> None:
    cache = make_cache()
    assert run("verify", cache.path)[0] == 0
    (cache.path / "teachers/a/summary/c/1/0").write_bytes(b"x")
    code, out, _ = run("verify", cache.path)
    assert code == 1
    assert "a, shard 1" in out
    assert "--repair" in out


def test_statistics_are_printed_as_a_table(make_cache: CacheFactory) -> None:
    code, out, _ = run("fit-stats", make_cache().path)
    assert code == 0
    head, _, *rows = out.splitlines()
    assert head.split()[:3] == ["teacher", "kind", "width"]
    assert [row.split()[:2] for row in rows[:3]] == [
        ["a", "patches"], ["a", "summary"], ["b", "patches"]
    ]  # fmt: skip


def test_the_three_stages_and_what_follows_run_from_the_command_line(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    """Every option of train reaches the run, and each stage names the next."""
    cache, out = make_cache().path, tmp_path / "run"
    code, said, _ = run("fit-stats", cache, "--teachers", "a,b", "--exact", "--seed", 1)
    assert code == 0
    assert f"phistill train {cache}" in said
    options = ["--normalizer", "standardize", "--teachers", "a", "--epochs", 1, "--batch-size", 8]
    options += ["--student", "vit_tiny_patch16_224", "--lr", 0.01, "--seed", 2, "--device", "cpu"]
    student = "student_options={patch_size=4, depth=1, embed_dim=24, num_heads=2}"
    options += ["--set", student, "--set", "head_width=16", "--set", "tensorboard=false"]
    code, said, _ = run("train", cache, "--out", out, *options)
    assert code == 0
    assert f"phistill evaluate {out}" in said
    config = json.loads((out / "config.json").read_text())["config"]
    expected = {"normalizer": "standardize", "teachers": ["a"], "batch_size": 8, "lr": 0.01}
    assert {key: config[key] for key in expected} == expected
    assert (config["seed"], config["epochs"], config["head_width"]) == (2, 1.0, 16)
    code, said, _ = run("train", cache, "--out", out, *options)
    assert code == 0
    assert "nothing to do" in said
    code, said, _ = run("evaluate", out, "--json")
    assert code == 0
    assert {line["teacher"] for line in json.loads(said)["fidelity"]} == {"a"}
    assert run("export", out, tmp_path / "student")[0] == 0
    assert (tmp_path / "student/model.safetensors").exists()
    code, _, err = run("evaluate", out, "--text-template", "{}")
    assert (code, "want a text tower" in err) == (2, True)
    assert run("export-normalizer", cache, "b", tmp_path / "b.safetensors")[0] == 0
    code, said, _ = run("inspect", cache, "--json")
    assert code == 0
    assert json.loads(said)["teachers"]
    assert run("remove-teacher", cache, "a")[0] == 0
    code, _, err = run("export", out, tmp_path / "later")
    assert (code, (tmp_path / "later/model.safetensors").exists()) == (0, True)
    assert "The model card has no figures" in err
    assert "has no teacher 'a'" in err
    cache.rename(tmp_path / "moved")
    code, _, err = run("evaluate", out)
    assert (code, f"the cache of this run, {cache}, is not" in err) == (2, True)
    assert "Say where it is now with --cache" in err
    assert "--cache" not in run("export", out, tmp_path / "last")[2], "export has no such option"


def test_the_papers_methods_by_one_command_and_more_steps_by_an_option(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache, toml, out = make_cache().path, tmp_path / "base.toml", tmp_path / "sweep"
    assert run("fit-stats", cache)[0] == 0
    toml.write_text(
        "[base]\nstudent_options = {patch_size=4, depth=1, embed_dim=24, num_heads=2}\n"
        'student = "vit_tiny_patch16_224"\nteachers = ["a"]\nhead_width = 16\nlog_every = 1\n'
        'tensorboard = false\ndevice = "cpu"\nbatch_size = 4\nnum_steps = 1\n'
    )
    command = ("sweep", cache, "--out", out, "--config", toml, "--preset", "methods")
    code, said, err = run(*command, "--seeds", "0,1")
    assert code == 0, err
    assert "24 of 24 cells trained in 1 pass" in said
    assert "| ada-phi-s | 2 |" in said
    toml.write_text(toml.read_text().replace("num_steps = 1", "num_steps = 2"))
    code, _, err = run(*command, "--seeds", "0,1")
    assert (code, "--extend gives it more steps" in err) == (1, True)
    code, said, err = run(*command, "--seeds", "0,1", "--extend")
    assert code == 0, err
    assert "24 of 24 cells trained" in said


EXTRACT = ["extract", "IMAGES", "--cache", "NEW", "--teacher", "demo:clip"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["extract", "IMAGES", "--cache", "FILE", "--teacher", "demo:clip"], 1, "FILE"),
        ([*EXTRACT, "--seed", "-1"], 2, "seed"),
        ([*EXTRACT, "--device", "mps"], 2, "mps"),
        ([*EXTRACT, "--min-side", "-1"], 2, "min_side"),
        (["extract", "IMAGES", "--cache", "NEW", "--teacher", "module:os:path"], 2, "callable"),
        (["extract", "LIST", "--cache", "NEW", "--teacher", "demo:clip"], 2, "nothing.png"),
        (["extract", "IMAGES", "--cache", "IMAGES", "--teacher", "demo:clip"], 2, "holds other"),
        (["extract", "NOWHERE", "--cache", "NEW", "--teacher", "demo:clip"], 2, "do not exist"),
        (["train", "CACHE", "--out", "NEW", "--config", "IMAGES"], 2, "cannot be read"),
        (["verify", "CACHE", "--live", "3"], 2, "needs the images"),
        (["verify", "CACHE", "IMAGES"], 2, "add --live"),
        (["extract", "IMAGES", "--cache", "CACHE", "--bits", "2"], 2, "name --teacher"),
        ([*EXTRACT, "--bits", "2", "--pilot", "0"], 2, "--pilot 0 must be at least"),
        (["train", "CACHE", "--out", "NEW", "--teachers", ""], 2, "names no teacher"),
        (["train", "CACHE", "--out", "NEW", "--set", "num_steps=5", "--epochs", "2"], 2, "count"),
        (["train", "CACHE", "--out", "NEW", "--config", "GRID"], 2, "phistill sweep"),
        (["sweep", "CACHE", "--out", "NEW", "--config", "GRIDS"], 2, "write [grid], with single"),
        (["sweep", "CACHE", "--out", "NEW"], 2, "--preset methods"),
        (["sweep", "CACHE", "--out", "NEW", "--preset", "method"], 2, "Did you mean methods"),
        (["sweep", "CACHE", "--out", "NEW", "--preset", "methods", "--seeds", "0,0"], 2, "differ"),
        (["evaluate", "CACHE"], 2, "no checkpoint: it is a cache"),
        (["evaluate", "NOWHERE"], 2, "no checkpoint: nothing is there"),
        (["inspect", "RUN"], 2, "it is a run"),
        (["merge", "CACHE", "CACHE"], 2, "is the cache itself"),
        (["export", "NOWHERE", "NEW", "--checkpoint", "5"], 2, "--checkpoint"),
        (["demo", "--out", "IMAGES"], 2, "not an empty folder"),
        (["report", "NOWHERE"], 2, "is not a cache"),
        (["merge", "CACHE", "NOWHERE"], 2, "is not a cache"),
    ],
)  # fmt: skip
def test_a_mistake_gets_an_explanation_and_no_traceback(
    make_cache: CacheFactory, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    places = {"CACHE": make_cache().path, "NEW": tmp_path / "new", "NOWHERE": tmp_path / "nowhere"}
    places |= {"IMAGES": tmp_path / "images", "FILE": tmp_path / "FILE", "LIST": tmp_path / "list"}
    places["GRID"] = tmp_path / "grid.toml"
    places["RUN"] = tmp_path / "run"
    (places["RUN"] / "checkpoints").mkdir(parents=True)
    (places["RUN"] / "config.json").write_text("{}")
    places["GRID"].write_text("[grid]\nseed = [0, 1]\n")
    places["GRIDS"] = tmp_path / "grids.toml"
    places["GRIDS"].write_text("[[grid]]\nseed = [0, 1]\n")
    places["IMAGES"].mkdir()
    (places["IMAGES"] / "x.png").write_bytes(b"x")
    places["FILE"].write_text("x")
    places["LIST"].write_text("nothing.png\n")
    found, _, err = run(*(places.get(argument, argument) for argument in arguments))
    assert (found, words in err) == (code, True), err


def test_embeddings_are_coded_and_decoded_with_what_is_lost_in_words(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(400, 32)) * np.arange(1, 33) ** -0.5
    np.save(tmp_path / "x.npy", x.astype(np.float16))
    codes, back = tmp_path / "codes.npy", tmp_path / "back.npy"
    code, out, _ = run("quantize", tmp_path / "x.npy", codes, "--bytes", 8)
    assert code == 0
    assert "400 vectors of 32 in 8 bytes each" in out
    assert "% of the variance" in out
    assert "recall@10" in out
    code, out, _ = run("dequantize", codes, back)
    assert (code, np.load(back).shape) == (0, (400, 32))
    code, out, _ = run("quantize", tmp_path / "x.npy", codes, "--bytes", 8, "--json")
    assert json.loads(out)["num_bytes"] == 8
    code, _, err = run("dequantize", tmp_path / "x.npy", back)
    assert code == 2
    assert "Name the codec with --codec" in err

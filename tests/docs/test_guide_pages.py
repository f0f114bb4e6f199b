"""Every command of the README and of the pages on how it works runs, in the page's order."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from phistill import TrainConfig, train
from tests.docs.page import DOCS, NEEDS, ROOT, TINY, Block, blocks, extracted, follow

ONE = (
    "student_options={'patch_size': 20, 'embed_dim': 24, 'depth': 1, 'num_heads': 1}, "
    "num_steps=2, batch_size=8"
)
"""TINY, as arguments of TrainConfig."""

FOLLOWED_BY = re.compile(r'follow\(\s*(DOCS|ROOT) / "([\w/-]+\.md)"')
REFERENCE = ("commands", "python", "settings")
"""Pages to look things up in."""

COMMAND = re.compile(r"^\s*(phistill|torchrun|srun|sbatch|pip|python) ", re.MULTILINE)


def test_what_the_readme_says_of_your_own_images(photos: Path) -> None:
    cuts = {
        "pip install .": "true",
        "timm:vit_small_patch14_reg4_dinov2.lvd142m?size=224": "demo:ssl",
        "timm:vit_base_patch16_siglip_224.v2_webli": "demo:clip?random=1",
        "open_clip:ViT-B-32/laion2b_s34b_b79k": "demo:clip",
        "phistill extract photos": "phistill extract photos --holdout 0.3 --pixel-size 40",
        "--student vit_small_patch16_224 --epochs 20": "--config run.toml",
    }
    (photos / "run.toml").write_text(TINY)
    outputs = follow(ROOT / "README.md", photos, cuts, also=["needs downloads"])
    assert "teachers dino, siglip, clip" in outputs[1]
    assert (photos / "student" / "config.json").exists()


@pytest.mark.slow
def test_training_one_student_from_two_caches_and_a_sweep(photos: Path) -> None:
    for name in ("my.cache", "web.cache", "photos.cache"):
        extracted(photos, name, "demo:ssl")
    options = TINY.replace("\n", "' --set '").replace(" = ", "=", 1)
    cuts = {
        "epochs=20": ONE,
        "--cache-weights 0.7,0.3": f"--cache-weights 0.7,0.3 --set '{options}'",
        'student = "vit_small_patch16_224"\nnum_steps = 20000': TINY,
        "num_steps = 60000": "num_steps = 3",
        "seeds = [0, 1, 2]": "seeds = [0]",
        '["phi-s", "standardize", "none"]': '["phi-s"]',
    }
    outputs = follow(DOCS / "training.md", photos, cuts, also=["needs downloads"])
    assert "trained ssl patches" in outputs[0]
    assert "long" in outputs[-1]


def test_normalizers_by_name(photos: Path) -> None:
    extracted(photos, "my.cache", "demo:clip")
    follow(DOCS / "statistics.md", photos)


def test_a_teacher_is_looked_at(photos: Path) -> None:
    cuts = {"vit_small_patch16_dinov3.lvd1689m": "vit_tiny_patch16_224"}
    cuts |= {"registers=true&random=1": "random=1"}
    (output,) = follow(DOCS / "teachers.md", photos, cuts)
    assert "14 x 14" in output


@pytest.mark.slow
def test_caches_of_codes_are_made_and_looked_at(photos: Path) -> None:
    extracted(photos, "my.cache", "demo:clip")
    (output,) = follow(
        DOCS / "compact.md", photos, {"extract photos": "extract photos --pixel-size 40"}
    )
    assert "patches as codes" in output


@pytest.mark.slow
def test_caches_that_shrink_travel_and_are_read(photos: Path) -> None:
    extracted(photos, "my.cache", "demo:clip")
    (photos / "takedown.txt").write_text("3.webp\n")
    outputs = follow(DOCS / "caches.md", photos, {"--rows 1000": "--rows 8"})
    assert any("'clip/patches': 8" in output for output in outputs)
    assert (photos / "theirs.cache").is_dir()


@pytest.mark.slow
def test_two_workers_into_a_cache_each_and_merged(photos: Path) -> None:
    cuts = {"extract photos": "extract photos --pixel-size 40"}
    *_, merged = follow(DOCS / "extraction-at-scale.md", photos, cuts)
    assert "shard" in merged


@pytest.fixture
def runs(photos: Path) -> Path:
    """``my.cache`` of two teachers and two runs on it, the teachers called as on the pages."""
    for at, image in enumerate(sorted((photos / "photos").iterdir())):
        folder = photos / "photos" / ("pear", "tree")[at % 2]
        folder.mkdir(exist_ok=True)
        image.rename(folder / image.name)
    extracted(photos, "my.cache", "clip=demo:clip", "dino=demo:ssl")
    config = {**tomllib.loads(TINY), "batch_size": 4}
    for name, normalizer in (("phi-s", "phi-s"), ("raw", "none")):
        one = TrainConfig.from_dict({**config, "normalizer": normalizer})
        train(photos / "my.cache", photos / "runs" / name, one)
    Image.open(photos / "photos" / "pear" / "0.webp").convert("RGB").save(photos / "photo.jpg")
    return photos


@pytest.mark.slow
def test_a_student_in_use(runs: Path) -> None:
    cuts = {"open_clip:ViT-B-32/laion2b_s34b_b79k": "demo:clip"}
    outputs = follow(DOCS / "student.md", runs, cuts)
    assert outputs[1].split() == ["torch.Size([1,", "128])", "torch.Size([1,", "36,", "160])"]
    assert outputs[-1].strip() in ("cat", "dog")


@pytest.mark.slow
def test_results_are_read(runs: Path) -> None:
    (runs / "words.txt").write_text("pear\ta yellow pear\ntree\tan old tree\n")
    follow(DOCS / "results.md", runs)
    assert (runs / "report.html").stat().st_size > 50_000


def test_the_verbs_at_the_top_of_the_package(photos: Path) -> None:
    small = "phistill.CacheSettings(pixel_size=40, holdout=0.3)"
    cuts = {
        '["demo:ssl", "demo:clip"]': f'["demo:ssl"], settings={small}',
        '"runs/phi-s")\nphistill.ev': f'"runs/phi-s", phistill.TrainConfig({ONE}))\nphistill.ev',
    }
    follow(DOCS / "reference/python.md", photos, cuts)
    assert (photos / "runs" / "phi-s" / "metrics.jsonl").exists()


def test_rows_as_codes(photos: Path) -> None:
    extracted(photos, "my.cache", "demo:ssl")
    follow(DOCS / "codes.md", photos)
    assert (photos / "my.codec").stat().st_size > 1000


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def test_every_page_with_commands_is_followed_by_a_test() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    followed = {
        (DOCS if where == "DOCS" else ROOT) / name for where, name in FOLLOWED_BY.findall(tests)
    }
    with_commands = {
        page for page in pages()
        if any(b.is_run and b.title not in NEEDS for b in blocks(page.read_text("utf-8")))
    }  # fmt: skip
    assert with_commands - followed == set()


def test_no_command_hides_in_a_block_that_is_not_run() -> None:
    hidden = [
        (page.name, block.text)
        for page in pages()
        for block in blocks(page.read_text("utf-8"))
        if not block.is_run and not block.title and COMMAND.search(block.text)
    ]
    assert hidden == []


def test_a_block_is_found_with_its_language_and_title() -> None:
    page = 'x\n```toml title="a.toml"\nb = 1\n```\n* y\n\n    ```bash\n    ls\n    ```\n'
    assert list(blocks(page)) == [Block("toml", "a.toml", "b = 1\n"), Block("bash", "", "ls\n")]
    assert [block.is_run for block in blocks(page)] == [False, True]
    assert COMMAND.search("# now\n  phistill inspect x\n")


def test_every_page_has_a_picture_and_every_picture_is_drawn_by_code_and_shown() -> None:
    without = {p.relative_to(DOCS).as_posix() for p in pages()[1:] if "![" not in p.read_text()}
    assert without == {"log.md", *(f"reference/{name}.md" for name in REFERENCE)}
    text = "".join(page.read_text("utf-8") for page in pages())
    making = "".join(path.read_text("utf-8") for path in (DOCS / "making").glob("*.py"))
    names = {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    assert {name for name in names if f"def {name}(figure: Figure)" not in making} == set()
    assert {name for name in names if f"pictures/{name}.svg" not in text} == set()

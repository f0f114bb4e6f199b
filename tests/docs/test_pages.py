"""Every command of tutorial, recipes and *Extend* runs, in the page's order."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.docs.page import DOCS, ROOT, TINY, extracted, follow
from tests.object_store import BUCKET, environment


@pytest.mark.slow
def test_the_tutorial_leads_to_a_student_in_use(tmp_path: Path) -> None:
    cuts = {
        "read_table(BUNDLED).to_pylist()": "read_table(BUNDLED).to_pylist()[::40]",
        "epochs = 7": "num_steps = 3",
        "embed_dim = 192, depth = 4": "embed_dim = 48, depth = 1",
        "python similar.py evergreen_plain": "python similar.py a",
    }
    outputs = follow(DOCS / "tutorial.md", tmp_path, cuts)
    assert "Worth it from" in outputs[1]
    assert "teachers clip, ssl, mask" in outputs[2]
    assert "clip" in outputs[5]
    assert outputs[-1].split()[0] == "1.00"  # a drawing is nearest to itself


@pytest.mark.slow
def test_four_teachers_into_one_student(photos: Path) -> None:
    cuts = {
        "timm:vit_large_patch14_reg4_dinov2.lvd142m?size=224": "demo:ssl",
        "timm:vit_so400m_patch16_siglip_256.v2_webli": "demo:clip?random=1",
        "open_clip:ViT-L-14/laion2b_s32b_b82k": "demo:clip",
        "timm:samvit_base_patch16.sa1b?neck=true&pad_from=512&grid=16x16": "demo:mask?grid=6x6",
        "--pixel-size 256": "--pixel-size 40",
        "phistill extract photos": "phistill extract photos --holdout 0.3",
        "pretrained = true\nepochs = 20\nbatch_size = 256": TINY.partition("\n")[2],
    }
    outputs = follow(DOCS / "recipes/four-teachers.md", photos, cuts, also=["needs downloads"])
    assert "teachers dino, siglip, clip, sam" in outputs[1]
    assert (photos / "vit-s" / "model.safetensors").exists()


@pytest.mark.slow
def test_an_ablation(photos: Path) -> None:
    extracted(photos, "my.cache", "demo:ssl")
    cuts = {
        'student = "vit_small_patch16_224"\nnum_steps = 20000': TINY,
        '["phi-s", "isotropic", "none"]': '["phi-s", "none"]',
        "seed = [0, 1, 2]": "seed = [0, 1]",
    }
    table, _ = follow(DOCS / "recipes/ablation.md", photos, cuts)
    assert "none" in table
    assert (photos / "ablation.html").stat().st_size > 50_000


def test_conditioning_an_encoder(photos: Path) -> None:
    extracted(photos, "encoder.cache", "demo:clip")
    *_, seen = follow(DOCS / "recipes/vlm-encoder.md", photos)
    assert "conditioned: channel std 1.000 to 1.000" in seen


def test_embeddings_as_codes(photos: Path) -> None:
    extracted(photos, "my.cache", "demo:clip")
    quantized, found = follow(DOCS / "recipes/retrieval-codes.md", photos)
    assert "24 vectors of 128 in 64 bytes" in quantized
    assert "recall@10" in quantized
    assert found.split()[:2] == ["[", "0"]  # the query is the first of the vectors
    assert np.load(photos / "back.npy").shape == (24, 128)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "tars"])
def test_imagenet_from_parquet_or_tars(photos: Path, kind: str) -> None:
    images = sorted((photos / "photos").iterdir())
    for split, some in (("train", images[:16]), ("validation", images[16:])):
        bytes_of = [{"bytes": image.read_bytes(), "path": image.name} for image in some]
        (photos / "imagenet-1k").mkdir(exist_ok=True)
        table = pa.table({"image": bytes_of, "label": pa.array(range(len(some)))})
        pq.write_table(table, photos / "imagenet-1k" / f"{split}-00000-of-00001.parquet")
        (photos / "imagenet-tars").mkdir(exist_ok=True)
        part = "val" if split == "validation" else split
        with tarfile.open(photos / "imagenet-tars" / f"imagenet-{part}-0000.tar", "w") as tar:
            for at, image in enumerate(some):
                tar.add(image, f"{part}{at}.webp")
                (photos / "label").write_text(str(at))
                tar.add(photos / "label", f"{part}{at}.cls")
    (photos / "run.toml").write_text(TINY)
    cuts = {"timm:vit_small_patch14_reg4_dinov2.lvd142m?size=224": "demo:ssl"}
    if kind == "tars":  # what the page does with the one cache it does with the other
        cuts |= {"--cache imagenet.cache": "--cache other.cache"}
        cuts |= {"--cache tars.cache": "--cache imagenet.cache"}
    outputs = follow(DOCS / "recipes/imagenet.md", photos, cuts, also=["needs downloads"])
    assert "16 for training, 8 held out" in outputs[2]


@pytest.mark.slow
def test_what_extend_says(photos: Path) -> None:
    cuts = {
        "../phistill/examples": str(ROOT / "examples"),
        "depth = 2": "patch_size = 20, embed_dim = 24, depth = 1, num_heads = 1",
        "head_width = 64\nnum_steps = 20": "head_width = 16\nnum_steps = 2",
        "--pixel-size 64": "--holdout 0.3 --pixel-size 40",
    }
    _, first, *_, last = follow(DOCS / "extend.md", photos, cuts)
    assert "Ready to be used." in first
    assert "untrained" in last


def test_a_bucket_is_a_cache_and_a_place_to_train_from(
    photos: Path, s3_endpoint: str, request: pytest.FixtureRequest
) -> None:
    (photos / "run.toml").write_text(TINY)
    cuts = {
        "s3://bucket/": f"s3://{BUCKET}/pages-{request.node.name[:12]}/",
        "open_clip:ViT-B-32/laion2b_s34b_b79k": "demo:clip",
        "phistill extract photos": "phistill extract photos --holdout 0.3 --pixel-size 40",
        "export AWS_REGION=eu-central-1\n": "",
    }
    page, at = DOCS / "recipes/object-store.md", environment(s3_endpoint)
    follow(page, photos, cuts, also=["needs a bucket"], variables=at)
    assert (photos / "runs/staged/config.json").exists()

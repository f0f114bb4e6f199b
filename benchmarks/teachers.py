"""Build twenty real models from their configs, extract two images with each, write the table.

    python benchmarks/teachers.py [--write docs/teachers.md] [--only TEXT]

Weights are random (nothing is downloaded): shapes, grids and bytes are those of the trained models.
The table replaces what stands between the two markers in the file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

import phistill.cache as store
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.teachers.check import two_images
from phistill.pipeline.teachers.spec import TeacherSpec

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

TEACHERS = (
    "timm:vit_small_patch14_dinov2.lvd142m?size=224",
    "timm:vit_small_patch14_reg4_dinov2.lvd142m?registers=true&size=224",
    "timm:vit_large_patch14_reg4_dinov2.lvd142m?size=224",
    "timm:vit_small_patch16_dinov3.lvd1689m?registers=true",
    "timm:convnext_tiny.dinov3_lvd1689m",
    "timm:vit_base_patch16_siglip_224.v2_webli",
    "timm:vit_so400m_patch16_siglip_256.v2_webli",
    "timm:vit_base_patch16_clip_224.dfn2b",
    "timm:eva02_small_patch14_224.mim_in22k",
    "timm:samvit_base_patch16.sa1b",
    "timm:samvit_base_patch16.sa1b?neck=true&pad_from=512",
    "timm:vit_base_patch16_224.mae",
    "timm:swin_tiny_patch4_window7_224.ms_in22k",
    "timm:hiera_tiny_224.mae",
    "timm:fastvit_mci0.apple_mclip",
    "open_clip:ViT-B-32/laion2b_s34b_b79k",
    "open_clip:ViT-B-16/dfn2b?space=joint",
    "open_clip:ViT-B-16-SigLIP2/webli",
    "open_clip:EVA02-B-16/merged2b_s8b_b131k",
    "open_clip:MobileCLIP2-S0/dfndr2b",
    "open_clip:convnext_base_w/laion2b_s13b_b82k",
    "open_clip:coca_ViT-B-32/laion2b_s13b_b90k",
    "open_clip:RN50/openai",
)
HEAD = (
    "| teacher | input | grid x width | summary | registers | bytes per image | licence |\n"
    "|---|---|---|---|---|---|---|"
)


def line(spec: str, folder: Path) -> str:
    """One row of the table, from a cache that ``extract`` wrote."""
    random = spec + ("&" if "?" in spec else "?") + "random=0"
    built = TeacherSpec.parse(random)
    cache = extract(
        folder / "images",
        folder / f"{len(list(folder.iterdir()))}.cache",
        [random],
        settings=CacheSettings(pixel_size=0, holdout=0.0),
    ).cache
    info = store.open(cache.path).teacher(built.name)
    values = cache.reader(built.name, "patches").read(cache.rows(split="all"))
    assert values.shape == (2, *info.row_shape("patches")), "both images are in the cache"
    given = info.identity["preprocessing"]["size"]
    summary = str(info.width("summary")) if "summary" in info.kinds else "-"
    registers = str(info.num_registers) if info.num_registers else "-"
    licence = built.build().licence if built.source == "timm" else None
    return (
        f"| `{spec}` | {given[0]}x{given[1]} | {info.grid[0]}x{info.grid[1]}x"
        f"{info.width('patches')} | {summary} | {registers} | "
        f"{info.row_bytes:,} | {licence or '-'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="Markdown file with the two markers.")
    parser.add_argument("--only", default="", help="Teachers whose text holds this.")
    arguments = parser.parse_args()
    lines = [HEAD]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number, pixels in enumerate(two_images((240, 320))):
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for spec in TEACHERS:
            if arguments.only in spec:
                started = time.monotonic()
                lines.append(line(spec, folder))
                print(lines[-1], f"  {time.monotonic() - started:.0f} s", flush=True)
    if arguments.write is None:
        return
    text = arguments.write.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"{arguments.write} lacks the markers {BEGIN} and {END}.")
    table = "\n".join(lines)
    arguments.write.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()

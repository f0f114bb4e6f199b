"""What only a CUDA device can tell; `make gpu` runs these, and every other test marked cuda."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phistill.cache import Cache
from phistill.compute.devices import choose_device, current_device, peak_memory_bytes
from phistill.compute.precision import full_float32, has_bfloat16, products_in
from phistill.compute.seeds import RandomState, seeded
from phistill.errors import Diverged
from phistill.pipeline import CacheSettings, ExtractOptions, extract
from phistill.stats import fit_stats
from phistill.train import TrainConfig, checkpoint, evaluate, train
from phistill.train.data.batch import Batch
from phistill.train.data.loader import Loader
from phistill.train.metrics import read_metrics
from phistill.train.step.state import TrainState

pytestmark = pytest.mark.cuda
IMAGES = Path(__file__).parents[2] / "demo" / "images.parquet"
STUDENT = TrainConfig(
    student="vit_tiny_patch16_224",
    student_options={"patch_size": 10, "embed_dim": 96, "depth": 2, "num_heads": 3},
    head_width=64,
    num_steps=20,
    batch_size=32,
    precision="float32",
    tensorboard=False,
)


def test_every_name_of_a_device_can_be_computed_on() -> None:
    for name in ("auto", "cuda", "cuda:0"):
        device = choose_device(name)
        with current_device(device):
            assert torch.cuda.current_device() == device.index
            assert float((torch.ones(3, device=device) * 2).sum()) == 6.0
    assert peak_memory_bytes(choose_device("auto"))


def test_float32_products_and_convolutions_are_full_whatever_the_caller_chose() -> None:
    device = choose_device("cuda")
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(512, 512))).to(device)
    images = torch.from_numpy(rng.normal(size=(4, 64, 32, 32))).to(device)
    kernel = torch.from_numpy(rng.normal(size=(64, 64, 3, 3))).to(device)
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            product = x.float() @ x.float()
            filtered = torch.conv2d(images.float(), kernel.float())
    finally:
        torch.set_float32_matmul_precision("highest")
    # TF32 keeps 11 bits: 5e-4 of a term, where float32's own rounding is 1e-7.
    assert float((product - x @ x).abs().max() / (x @ x).abs().max()) < 1e-5
    exact = torch.conv2d(images, kernel)
    assert float((filtered - exact).abs().max() / exact.abs().max()) < 1e-5


def test_products_are_taken_in_bfloat16_where_the_card_has_it() -> None:
    device = choose_device("cuda")
    if not has_bfloat16(device):
        pytest.skip("this card has no bfloat16 units")
    x = torch.ones(8, 8, device=device)
    with products_in("bfloat16", "cuda"):
        assert (x @ x).dtype == torch.bfloat16


def test_the_callers_generators_are_as_they_were() -> None:
    device = choose_device("cuda")
    before = torch.get_rng_state(), torch.cuda.get_rng_state(device)
    with seeded(3):
        torch.rand(2)
    state = RandomState(1, 0, device)
    with state.in_place():
        first = torch.rand(4, device=device)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(device), before[1])
    with RandomState(1, 0, device).in_place():
        assert torch.equal(torch.rand(4, device=device), first)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    """The bundled images through one teacher, on the CPU and on the card, both in float32."""
    folder, made = tmp_path_factory.mktemp("cuda"), {}
    for device in ("cpu", "cuda"):
        made[device] = extract(
            IMAGES,
            folder / f"{device}.cache",
            ["demo:clip"],
            settings=CacheSettings(pixel_size=60),
            options=ExtractOptions(device=device, autocast="float32"),
        ).cache
        fit_stats(made[device])
    return made


def test_a_teacher_gives_on_the_card_what_it_gives_on_the_cpu(caches: dict[str, Cache]) -> None:
    rows = caches["cpu"].rows(["clip"], "all")[:256]
    for kind in ("patches", "summary"):
        one, two = (caches[d].reader("clip", kind).read(rows).astype(np.float64) for d in caches)
        assert np.abs(one - two).max() <= 2e-3 * np.abs(one).max()  # float16 keeps 11 bits
    record = next(iter(caches["cuda"].commits("clip").values()))
    assert record.environment["float32_products"] == "ieee"
    assert record.environment["device"] == torch.cuda.get_device_name(0)


def test_a_student_learns_on_the_card_what_it_learns_on_the_cpu(
    caches: dict[str, Cache], tmp_path: Path
) -> None:
    losses = {}
    for device in ("cpu", "cuda", "auto"):
        config = TrainConfig.from_dict({**STUDENT.to_dict(), "device": device})
        train(caches["cpu"], tmp_path / device, config)
        losses[device] = [
            list(x["losses"].values()) for x in read_metrics(tmp_path / device, "train")
        ]
    assert np.allclose(losses["cpu"], losses["cuda"], rtol=2e-3)
    assert np.allclose(losses["auto"], losses["cuda"], rtol=1e-3)
    one, two = (evaluate(tmp_path / "cuda", caches["cpu"], device=d) for d in ("cpu", "cuda"))
    for left, right in zip(one, two, strict=True):
        assert left.cosine == pytest.approx(right.cosine, abs=1e-4)


def test_a_deterministic_run_ends_in_the_same_bits_every_time(
    caches: dict[str, Cache], tmp_path: Path
) -> None:
    logs = []
    for number in range(2):
        config = TrainConfig.from_dict(
            {**STUDENT.to_dict(), "device": "cuda", "deterministic": True, "log_every": 1}
        )
        train(caches["cpu"], tmp_path / str(number), config)
        logs.append([line["losses"] for line in read_metrics(tmp_path / str(number), "train")])
    assert logs[0] == logs[1]


def test_rows_from_memory_and_from_the_cache_give_the_same_losses(
    caches: dict[str, Cache], tmp_path: Path
) -> None:
    """Nothing is overwritten while it travels."""
    losses = []
    for number, settings in enumerate(
        [{}, {"memory_bytes": 0}, {"memory_bytes": 0, "loader_workers": 2, "read_ahead": 1}]
    ):
        config = TrainConfig.from_dict({**STUDENT.to_dict(), "device": "cuda", **settings})
        train(caches["cpu"], tmp_path / str(number), config)
        log = read_metrics(tmp_path / str(number), "train")
        losses.append([list(line["losses"].values()) for line in log])
    assert np.allclose(losses[0], losses[1], rtol=1e-3)
    assert np.allclose(losses[0], losses[2], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_step_waits_for_the_card_but_where_it_is_looked_at(
    caches: dict[str, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch itself raises at a call that would wait."""
    learn, steps = TrainState.train_step, []

    def watched(state: TrainState, batch: Batch) -> None:
        steps.append(batch.step)
        torch.cuda.set_sync_debug_mode("error" if batch.step > 2 else "default")
        try:
            learn(state, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainState, "train_step", watched)
    drawn = {"brightness": 0.2, "noise": 0.1, "ema_decay": 0.9, "balance": "adaloss"}
    config = TrainConfig.from_dict({**STUDENT.to_dict(), "device": "cuda", **drawn})
    train(caches["cpu"], tmp_path / "run", config)
    assert len(steps) == 20


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_a_step_that_is_not_finite_is_left_out_on_the_card(
    optimizer: str, caches: dict[str, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Loader.load

    def spoilt(loader: Loader, step: int) -> Batch:
        batch = load(loader, step)
        if step == 12:
            next(iter(batch.values.values()))[1:3] = torch.inf
        return batch

    changes = {"device": "cuda", "optimizer": optimizer, "ema_decay": 0.9, "deterministic": True}
    config = TrainConfig.from_dict({**STUDENT.to_dict(), **changes, "checkpoint_every": 12})
    train(caches["cpu"], tmp_path / "whole", config)
    monkeypatch.setattr(Loader, "load", spoilt)
    with pytest.raises(Diverged, match="step 13 is not finite"):
        train(caches["cpu"], tmp_path / "spoilt", config)
    one, two = (checkpoint.load(tmp_path / name, 12) for name in ("whole", "spoilt"))
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())

"""Copies beside kernels, on a stand-in device whose streams run as far apart as they may.

Nothing on a stream runs before it must: before the host waits for an event, or another stream that
has to run does. Or, the other way round, a stream runs at once whatever the others still have to
do. A copy that is not ordered against the kernel before it, or a host that does not wait for a
copy, then sees old values. The twin of each test leaves one wait out and must fail.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from phistill.compute.copies import ToDevice, copy_stream, host_memory, placed, to_host

CUDA = torch.device("cuda", 0)


class Stream:
    """Work in order; ``eager`` streams do it as soon as they are asked."""

    def __init__(self, device: Any = None) -> None:
        self.work: deque[Callable[[], None]] = deque()
        self.eager = False

    def add(self, work: Callable[[], None]) -> None:
        self.work.append(work)
        if self.eager:
            self.run()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        while self.work and not until():
            self.work.popleft()()

    def wait_event(self, event: Event) -> None:
        self.add(event.synchronize)

    def wait_stream(self, other: Stream) -> None:
        event = Event()
        event.record(other)
        self.wait_event(event)


class Event:
    def __init__(self, *, blocking: bool = False) -> None:
        self.stream: Stream | None = None
        self.done = False

    def record(self, stream: Stream) -> None:
        self.stream, self.done = stream, False
        stream.add(lambda: setattr(self, "done", True))

    def synchronize(self) -> None:
        assert self.stream is not None, "an event that was never recorded is waited for"
        self.stream.run(until=lambda: self.done)
        assert self.done


class Memory:
    """A tensor of one number, on the host or on the device."""

    def __init__(self, card: Card, device: torch.device, value: float, pinned: bool = False):
        self.card, self.device, self.value, self.pinned = card, device, value, pinned
        self.shape, self.dtype = (), torch.float32
        self.streams = {id(card.current)} if device.type == "cuda" else set[int]()

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> Memory:
        return Memory(self.card, self.device, self.value, pinned=True)

    def to(self, device: torch.device, non_blocking: bool = False) -> Memory:
        assert self.pinned, "a copy of pageable memory holds the host up"
        moved = Memory(self.card, device, -1.0)
        moved.copy_(self, non_blocking=non_blocking)
        return moved

    def copy_(self, source: Memory, non_blocking: bool = False) -> Memory:
        assert non_blocking
        self.card.current.add(lambda: setattr(self, "value", source.value))
        return self

    def record_stream(self, stream: Stream) -> None:
        self.streams.add(id(stream))

    def kernel(self, value: float) -> None:
        self.card.current.add(lambda: setattr(self, "value", value))


class Card:
    """The device: its current stream, and what torch.cuda says of it."""

    def __init__(self) -> None:
        self.default = self.current = Stream()

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture(params=["late", "early"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """A device whose side streams run as late, or as early, as they may."""
    card = Card()

    def new_stream(device: torch.device) -> Stream:
        stream = Stream()
        stream.eager = request.param == "early"
        return stream

    def empty(shape: Any, *, dtype: torch.dtype, pin_memory: bool) -> Memory:
        return Memory(card, torch.device("cpu"), -2.0, pinned=pin_memory)

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", card.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: card.current)
    monkeypatch.setattr(torch, "empty", empty)
    copy_stream.cache_clear()
    yield card
    copy_stream.cache_clear()


def sent_and_used(card: Card, *, reused: bool) -> float:
    """A host tensor is sent, its memory used again or not, and a kernel adds one on the device."""
    copies = ToDevice(CUDA)
    host: Any = Memory(card, torch.device("cpu"), 5.0, pinned=True)
    (on_device,) = copies.send([host]).take()
    moved: Any = on_device
    assert moved.streams == {id(card.default), id(copy_stream(CUDA, "to device"))}
    if reused:
        copies.finish()
        host.value = 99.0
    seen = Memory(card, CUDA, -1.0)
    card.default.add(lambda: setattr(seen, "value", moved.value + 1))
    card.default.run()
    return seen.value


def computed_and_fetched(card: Card) -> float:
    """A kernel computes a value that travels to the host, and then overwrites it."""
    features: Any = Memory(card, CUDA, -1.0)
    features.kernel(7.0)
    arriving = to_host([features])
    assert id(copy_stream(CUDA, "to host")) in features.streams
    host: Any = arriving.wait()[0]
    return float(host.value)


def test_a_kernel_sees_what_was_sent_and_a_buffer_may_be_used_again(card: Card) -> None:
    assert sent_and_used(card, reused=False) == 6.0
    assert sent_and_used(card, reused=True) == 6.0


def test_the_host_sees_what_the_kernel_computed(card: Card) -> None:
    assert computed_and_fetched(card) == 7.0


@pytest.mark.parametrize("card", ["late"], indirect=True)
@pytest.mark.parametrize("wait", ["wait_event", "finish"])
def test_without_a_wait_a_kernel_would_see_something_else(
    card: Card, wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner: Any = Stream if wait == "wait_event" else ToDevice
    monkeypatch.setattr(owner, wait, lambda *_: None)
    assert sent_and_used(card, reused=wait == "finish") != 6.0


@pytest.mark.parametrize(
    ("card", "owner", "wait"),
    [("early", Stream, "wait_stream"), ("late", Event, "synchronize")],
    indirect=["card"],
)
def test_without_a_wait_the_host_would_see_something_else(
    card: Card, owner: Any, wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, wait, lambda *_: None)
    assert computed_and_fetched(card) != 7.0


def test_a_copy_ahead_does_not_wait_for_the_kernels_of_the_batch_before(card: Card) -> None:
    """What the second stream is for: the copy has ended while the kernels have not begun."""
    busy: Any = Memory(card, CUDA, 0.0)
    busy.kernel(1.0)
    copies = ToDevice(CUDA)
    sent: Any = copies.send([Memory(card, torch.device("cpu"), 5.0)])  # type: ignore[list-item]
    copies.finish()
    assert sent.tensors[0].value == 5.0
    assert busy.value == 0.0


def test_a_small_tensor_is_pinned_on_its_way(card: Card) -> None:
    """The stand-in refuses a copy of pageable memory, for which the host would wait."""
    host: Any = Memory(card, torch.device("cpu"), 5.0)
    moved: Any = placed(host, CUDA)
    card.default.run()
    assert moved.value == 5.0


def test_everything_that_copies_one_way_shares_a_stream(card: Card) -> None:
    assert copy_stream(CUDA, "to host") is copy_stream(torch.device("cuda:0"), "to host")
    assert copy_stream(CUDA, "to host") is not copy_stream(CUDA, "to device")
    assert copy_stream(CUDA, "to host") is not copy_stream(torch.device("cuda:1"), "to host")


def test_apples_gpu_is_never_left_with_a_copy_of_memory_that_is_written_again() -> None:
    """A copy there that does not block reads the host's memory when it gets to it."""
    asked: list[bool] = []

    class Host:
        device = torch.device("mps")

        def to(self, device: torch.device, non_blocking: bool = False) -> Host:
            asked.append(non_blocking)
            return self

        def cpu(self) -> Host:
            return self

    host: Any = Host()
    copies = ToDevice(torch.device("mps"))
    assert copies.send([host]).take() == (host,)
    copies.finish()
    assert to_host([host]).wait() == (host,)
    assert asked == [False]


def test_on_the_cpu_nothing_is_copied() -> None:
    cpu, x = torch.device("cpu"), torch.ones(3)
    assert ToDevice(cpu).send([x]).take()[0] is x
    assert to_host([x]).wait()[0].data_ptr() == x.data_ptr()
    assert not host_memory((2, 3), torch.uint8, cpu).is_pinned()


@pytest.mark.cuda
def test_on_a_gpu_what_is_sent_comes_back() -> None:
    copies = ToDevice(CUDA)
    for number in range(20):
        host = host_memory((1 << 20,), torch.float32, CUDA).fill_(number)
        (x,) = copies.send([host]).take()
        arriving = to_host([x * 2])
        copies.finish()
        host.fill_(-1)
        assert torch.equal(arriving.wait()[0], torch.full((1 << 20,), 2.0 * number))

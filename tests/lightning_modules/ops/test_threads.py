import multiprocessing
import threading

import pytest
import torch

from lightning_modules.ops import selective_scan, threads


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_every_task_runs_once() -> None:
    seen = []
    threads.run(lambda a, b: seen.append((a, b)), [(i, -i) for i in range(100)])
    assert sorted(seen) == [(i, -i) for i in range(100)]


@pytest.mark.usefixtures("three_threads")
def test_works_on_as_many_threads_as_torch() -> None:
    meeting = threading.Barrier(3)
    threads.run(lambda _: meeting.wait(timeout=600), [(i,) for i in range(3)])  # fewer threads would never meet


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("failing", [0, 50])
def test_an_error_reaches_the_caller(failing: int) -> None:
    def work(i: int) -> None:
        if i == failing:
            raise ValueError("task failed")

    with pytest.raises(ValueError, match="task failed"):
        threads.run(work, [(i,) for i in range(100)])


def _inputs(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u, delta = torch.randn(2, 1, 90, 80, generator=generator)
    B, C = torch.randn(2, 1, 90, 8, generator=generator)
    return [u, delta.abs(), -torch.rand(80, 8, generator=generator), B, C]


@pytest.mark.usefixtures("three_threads")
def test_concurrent_callers() -> None:
    expected = [selective_scan(*_inputs(seed)) for seed in range(4)]
    wrong = []

    def call(seed: int) -> None:
        for _ in range(20):
            if not torch.equal(selective_scan(*_inputs(seed)), expected[seed]):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=600)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


def _scan_in_child(queue) -> None:
    # More than one thread, so that the pool inherited from the parent, whose threads are gone, would be used.
    torch.set_num_threads(3)
    queue.put(float(selective_scan(*_inputs(0)).double().sum()))


@pytest.mark.usefixtures("three_threads")
def test_forked_child() -> None:
    expected = float(selective_scan(*_inputs(0)).double().sum())
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_scan_in_child, args=(queue,))
    child.start()
    child.join(timeout=600)
    assert child.exitcode == 0
    assert queue.get() == expected

"""Memory that one call after the other is lent."""

import gc
import threading
from weakref import ref

from lightning_modules.ops.workspace import Workspace, passing


def _places(workspace, *sizes) -> list[int]:
    with workspace.lent():
        return [passing(size).data_ptr() for size in sizes]


def test_the_same_for_the_same_sizes() -> None:
    workspace = Workspace()
    first = _places(workspace, 50, 60, 50)
    assert len(set(first)) == 3 and _places(workspace, 50, 60, 50) == first
    assert _places(workspace, 50, 61, 50)[::2] == first[::2]  # another size in between has its own
    outside = passing(50)
    assert outside.data_ptr() not in first


def test_lent_to_one_at_a_time() -> None:
    workspace, found = Workspace(), []
    with workspace.lent():
        mine = passing(50)
        other = threading.Thread(target=lambda: found.extend(_places(workspace, 50)))
        other.start()
        other.join()
        assert found and found[0] != mine.data_ptr()
        with Workspace().lent():
            inner = passing(50).data_ptr()
        assert inner != mine.data_ptr() != passing(50).data_ptr()  # goes on where it was


def test_shared_by_a_thread_while_somebody_keeps_it() -> None:
    found = {}

    def fresh() -> None:
        workspace = Workspace.of_thread()
        found["same"] = Workspace.of_thread() is workspace
        found["here"] = workspace is mine
        gone = ref(workspace)
        del workspace
        gc.collect()
        found["gone"] = gone() is None

    mine = Workspace.of_thread()
    thread = threading.Thread(target=fresh)
    thread.start()
    thread.join()
    assert found["same"] and found["gone"] and not found["here"]

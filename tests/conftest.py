import importlib.util
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


def pytest_configure() -> None:
    # A suite that was started in the background ignores Ctrl-C, and so would all processes that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict, dict]]:
    """``golden("muse_head")``: the tensors of tests/golden/muse_head.safetensors.xz and what its JSON file says."""
    folder = Path(__file__).with_name("golden")

    def read(name: str) -> tuple[dict, dict]:
        from safetensors.torch import load  # imports torch, which many tests do without

        with lzma.open(folder / f"{name}.safetensors.xz") as file:
            tensors = load(file.read())
        return tensors, json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real clips and reference tables; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared folder beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator:
    """A process group left behind would give its port to every process that a later test starts."""
    yield
    assert "MASTER_PORT" not in os.environ, "start several processes in a process of their own"


@pytest.fixture(autouse=True)
def no_seed() -> Iterator:
    """Lightning's `seed_everything` leaves the seed for later tests and for the processes that they start."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A headless Chromium that Playwright drives; tests that use it are marked `browser`. For example
    ``page = chromium.new_page(viewport={"width": 380, "height": 700})``."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium; `make test-browser` installs it")
    from playwright.sync_api import sync_playwright

    # As root there is no sandbox; the others keep it from asking for updates.
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where tests leave pictures of pages for people to look at; git ignores it."""
    folder = Path(__file__).resolve().parents[1] / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def hub_server() -> Iterator:
    """A `HubServer` (tests/hub_server.py) without repositories, running on loopback."""
    with _beside("hub_server").HubServer() as server:
        yield server


@pytest.fixture
def shard_server() -> Callable:
    """`ShardServer` (tests/shard_server.py): ``with shard_server(folder) as server``."""
    return _beside("shard_server").ShardServer


@pytest.fixture(scope="session")
def _object_store() -> Iterator:
    module = _beside("object_store")
    if not module.installed():
        pytest.skip("needs moto[server] and s3fs")
    with module.ObjectStore() as store:
        yield store


@pytest.fixture
def object_store(_object_store, monkeypatch) -> Iterator[str]:
    """The URL of an empty bucket, s3://..., of a store on loopback (tests/object_store.py). While the test runs,
    environment variables lead fsspec and LanceDB to it, here and in processes that the test starts."""
    for name, value in _object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    # fsspec keeps the clients of a process, with the keys and the address that they were made with.
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield _object_store.bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def fit() -> Callable:
    """``fit(folder, name, *arguments, **environment)``: the command ``lightning fit`` with tests/conf/resume.yaml, in a
    folder whose modules it may name, for a run of that name; the finished process."""

    def run(folder: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        config = Path(__file__).with_name("conf") / "resume.yaml"
        lightning = Path(sys.executable).parent / "lightning"
        command = [lightning, "fit", "--config", config, *arguments, "--trainer.default_root_dir", name]
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, **environment}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return run


def _beside(name: str) -> ModuleType:
    # Tests are no package and not on sys.path (import-mode=importlib), so the file is loaded by its path.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

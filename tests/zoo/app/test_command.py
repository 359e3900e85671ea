"""`zoo app` as a process: it starts without a network, tells mistakes in one sentence, and ends with Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ZOO = Path(sys.executable).with_name("zoo")


def run(*arguments, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([ZOO, "app", *arguments], capture_output=True, text=True, timeout=600, env=env, **options)


@pytest.mark.slow
def test_it_starts_without_a_network_and_ends_with_ctrl_c(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        there = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        proxies = dict.fromkeys(
            ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), there
        )
        env = {**os.environ, **proxies, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
        env.pop("no_proxy", None), env.pop("NO_PROXY", None)
        process = subprocess.Popen(
            [ZOO, "app", "--port", str(port)], text=True, stdout=-1, stderr=-1, env=env, cwd=tmp_path
        )
        try:
            assert process.stdout.readline() == f"Open http://127.0.0.1:{port} in a browser; Ctrl-C ends the page.\n"
            assert [path.name[:8] for path in tmp_path.iterdir()] == ["zoo-app-"]
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/", timeout=600) as answer:
                assert b"Video Mamba Zoo" in answer.read()
            with socket.socket() as other, pytest.raises(OSError):  # bound to loopback alone
                other.connect((socket.gethostbyname(socket.gethostname()).replace("127.0.0.1", "127.0.0.2"), port))
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=600)
        assert (process.returncode, err) == (130, "zoo: interrupted\n")
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert not list(tmp_path.iterdir())


def test_a_busy_port_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (f"zoo: The page cannot listen on 127.0.0.1, port {port} (Address already in use); choose "
                           "another --port or --host.\n")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "70000"], "--port is 70000; it has to be from 1 to 65,535."),
        (["--host", "192.0.2.1"], "The page cannot listen on 192.0.2.1, port 7860 (Cannot assign requested address); "
         "choose another --port or --host."),
        (["--port", "1234", "--max-mb", "0"], "max_megabytes is 0; it has to be from 1 to 100,000."),
        (["--port", "1234", "--max-minutes", "nan"], "max_minutes is nan; it has to be from 0.01 to 10,000."),
        (["--port", "1234", "--index", "missing"], "missing is no index of videos; make one: zoo index MODEL VIDEOS -o "
         "missing."),
    ],
)  # fmt: skip
def test_mistakes(arguments, sentence, capsys):
    from zoo.commands.main import main

    with pytest.raises(SystemExit) as exit:
        main(["app", *arguments])
    assert exit.value.code == 1
    assert capsys.readouterr().err == f"zoo: {sentence}\n"


def test_without_gradio():
    code = (
        "import sys; sys.modules['gradio'] = None\nfrom zoo.commands.main import main\nmain(['app', '--port', '1234'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr == "zoo: The page needs Gradio; install it: pip install 'video-mamba-zoo[app]'.\n"

"""hub.pull through the real huggingface_hub client, against a Hub of our own on loopback; test_push.py has hub.push.

The client reads its environment when imported, so each scenario is a process of its own.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest
from huggingface_hub import constants

from hub.remote import commit_of

# Pulls what the JSON on standard input asks for, one after the other, and prints what became of each; without a file
# name it asks for the list of files.
PULL = """
import json, sys
import hub
from hub.remote import list_files
answers = []
for arguments in json.load(sys.stdin):
    try:
        answers.append(str(hub.pull(**arguments) if "filename" in arguments else list_files(**arguments)))
    except hub.HubError as error:
        answers.append(f"HubError: {error}")
print(json.dumps(answers))
"""


def pull(tmp_path, server, *requests: dict, first: str = "", **env: str) -> tuple[list[str], str]:
    """Answers to the requests from one fresh process that runs `first` before, and what it wrote to standard error."""
    done = subprocess.run(
        [sys.executable, "-c", first + PULL],
        input=json.dumps(requests), capture_output=True, text=True, timeout=600,
        env=server.environment(tmp_path / "hf", **env),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def one_sentence(answer: str, *words: str) -> bool:
    return answer.startswith("HubError: ") and "\n" not in answer and all(word in answer for word in words)


def test_downloads_once_and_works_offline(tmp_path, hub_server):
    large, small = os.urandom(300_000), b"{}"
    first = hub_server.commit("org/model", {"weights.bin": large, "sub/config.json": small})
    second = hub_server.commit("org/model", {"weights.bin": b"new", "sub/config.json": small})
    requests = [
        {"repo_id": "org/model", "filename": "weights.bin", "revision": first},
        {"repo_id": "org/model", "filename": "weights.bin", "sha256": hashlib.sha256(b"new").hexdigest().upper()},
        {"repo_id": "org/model", "filename": "sub/config.json"},
    ]
    (old, new, nested), _ = pull(tmp_path, hub_server, *requests)
    for path, content, name, commit in (
        (old, large, "weights.bin", first),
        (new, b"new", "weights.bin", second),
        (nested, small, "sub/config.json", second),
    ):
        with open(path, "rb") as file:
            assert file.read() == content
        assert commit_of(type(tmp_path)(path), name) == commit
    assert sum(line.startswith("GET /store/") for line in hub_server.log) == 1

    asked = len(hub_server.log)
    again, _ = pull(tmp_path, hub_server, *requests, HF_HUB_OFFLINE="1")
    assert again == [old, new, nested]
    assert len(hub_server.log) == asked


def test_what_the_hub_refuses_is_one_sentence(tmp_path, hub_server):
    hub_server.commit("org/model", {"weights.bin": b"tensors"})
    for repo_id, status in (("org/private", 401), ("org/gated", 403)):
        hub_server.commit(repo_id, {"weights.bin": b"tensors"})
        hub_server.status[repo_id] = status
    weights = {"filename": "weights.bin"}
    answers, errors = pull(
        tmp_path,
        hub_server,
        {"repo_id": "org/nothing", **weights},
        {"repo_id": "org/model", "filename": "other.bin"},
        {"repo_id": "org/model", "revision": "v9", **weights},
        {"repo_id": "org/private", **weights},
        {"repo_id": "org/gated", **weights},
        {"repo_id": "not a name", **weights},
        {"repo_id": "org/model", "sha256": "0" * 64, **weights},
        {"repo_id": "org/model", "sha256": "0" * 64, **weights},
        {"repo_id": "org/model", "filename": "../../../weights.bin"},
        {"repo_id": "org/model", "revision": "../../main", **weights},
        {"repo_id": "org/private"},
        {"repo_id": "org/nothing"},
    )
    nothing, other, revision, private, gated, name, swapped, cached, outside, odd, *lists = answers
    assert one_sentence(nothing, "org/nothing", "HF_TOKEN")
    assert one_sentence(other, "org/model", "other.bin")
    assert one_sentence(revision, "org/model", "'v9'")
    assert one_sentence(private, "org/private", "HF_TOKEN")
    assert one_sentence(gated, "org/gated", "HF_TOKEN")
    assert one_sentence(name, "'not a name'", "organisation/name")
    assert one_sentence(swapped, "weights.bin", "SHA-256", "000000000000", "delete") and cached == swapped
    assert one_sentence(outside, "'../../../weights.bin' leads out of the folder")
    assert one_sentence(odd, "no revision '../../main'")
    assert lists[0] == "['weights.bin']" and one_sentence(lists[1], "org/nothing")
    assert "Traceback" not in errors


def test_bad_downloads_are_fetched_again_or_refused(tmp_path, hub_server):
    """Each repository has the same file names, other content, and its own kind of bad luck."""
    large, small = {}, {}

    def plan(name, *faults, path="GET /store/", filename="weights.bin"):
        large[name], small[name] = os.urandom(200_000), os.urandom(2_000)
        hub_server.commit(f"org/{name}", {"weights.bin": large[name], "config.json": small[name]})
        where = path + hashlib.sha256(large[name]).hexdigest() if path == "GET /store/" else path
        for kind, times, headers in faults:
            hub_server.fail(where, kind, times, **headers)
        return {"repo_id": f"org/{name}", "filename": filename}

    resolve = "{} /org/{}/resolve/main/config.json"
    good = [
        plan("cut", ("truncate", 1, {})),
        plan("dropped", ("drop", 1, {})),
        plan("flipped", ("flip", 1, {})),
        plan("swapped", ("swap", 1, {})),
        plan("flipped-small", ("flip", 1, {}), path=resolve.format("GET", "flipped-small"), filename="config.json"),
        plan("busy", (429, 2, {"Retry_After": "0"}), path=resolve.format("HEAD", "busy"), filename="config.json"),
        plan("ill", (503, 2, {}), path=resolve.format("HEAD", "ill"), filename="config.json"),
    ]
    bad = [
        plan("short", ("short", 1, {})),
        plan("always-flipped", ("flip", 2, {})),
        plan("always-swapped", ("swap", 2, {})),
        plan("forbidden", (403, 1, {})),
        plan("broken", (500, 1, {})),
        plan("gone", ("drop", 9, {}), path="HEAD /org/gone/", filename="weights.bin"),
    ]
    answers, errors = pull(tmp_path, hub_server, *good, *bad)
    assert "Traceback" not in errors
    for request, answer in zip(good, answers, strict=False):
        name = request["repo_id"].removeprefix("org/")
        expected = (large if request["filename"] == "weights.bin" else small)[name]
        if name in ("cut", "dropped") and one_sentence(answer, "could not be fetched", "try again later"):
            (answer,), _ = pull(tmp_path, hub_server, request)  # not every huggingface_hub tries again by itself
        assert not answer.startswith("HubError"), answer
        with open(answer, "rb") as file:
            assert file.read() == expected, name
    assert all(fault.times == 0 for fault in hub_server.faults if fault.times < 5)
    requests = [line for line in hub_server.log if hashlib.sha256(large["cut"]).hexdigest() in line]
    assert requests == [requests[0]] * 2  # the second asks for the missing half
    short, flipped, swapped, forbidden, broken, gone = answers[len(good) :]
    assert one_sentence(short, "weights.bin of org/short could not be fetched", "size 200000")
    for answer, name in ((flipped, "always-flipped"), (swapped, "always-swapped")):
        assert one_sentence(answer, f"weights.bin of org/{name}", "another content", "not used")
    assert one_sentence(forbidden, "403", "HF_TOKEN") and one_sentence(broken, "500", "try again later")
    assert one_sentence(gone, "org/gone", "cannot be reached")
    # Nothing bad stays behind, and asking again gets the file.
    blobs = [path for path in (tmp_path / "hf").rglob("blobs/*") if path.is_file() and path.suffix == ""]
    assert len(blobs) == len(good)
    assert all(path.read_bytes() in [*large.values(), *small.values()] for path in blobs)
    hub_server.faults.clear()
    answers, _ = pull(tmp_path, hub_server, *bad)
    for request, answer in zip(bad, answers, strict=True):
        with open(answer, "rb") as file:
            assert file.read() == large[request["repo_id"].removeprefix("org/")]


def test_a_cached_file_that_was_damaged_is_noticed(tmp_path, hub_server):
    contents = {"weights.bin": os.urandom(200_000), "config.json": b'{"a": 1}'}
    hub_server.commit("org/model", contents)
    requests = [{"repo_id": "org/model", "filename": name} for name in contents]
    paths, _ = pull(tmp_path, hub_server, *requests)

    def damage():
        for path, content in zip(paths, contents.values(), strict=True):
            with open(path, "wb") as file:
                file.write(content[:-1] + bytes([content[-1] ^ 1]))

    damage()
    for env, reason in (({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({}, "the Hub does not answer")):
        with socket.socket() as taken:
            answers, _ = pull(tmp_path, hub_server, *requests, HF_ENDPOINT=unreachable(taken), **env)
        for answer, path in zip(answers, paths, strict=True):
            assert one_sentence(answer, "is damaged", path, reason, "zoo pull org/model")
    again, errors = pull(tmp_path, hub_server, *requests)
    assert again == paths and "Traceback" not in errors
    for path, content in zip(paths, contents.values(), strict=True):
        with open(path, "rb") as file:
            assert file.read() == content


@pytest.mark.skipif(not hasattr(constants, "HF_HUB_DISABLE_SYMLINKS"), reason="needs a cache without links")
def test_downloads_into_a_cache_without_links_are_compared(tmp_path, hub_server):
    """Such a cache does not keep the hash."""
    contents = {"weights.bin": os.urandom(200_000), "config.json": b'{"a": 1}'}
    requests = [{"repo_id": "org/model", "filename": name} for name in contents]
    hub_server.commit("org/plain", contents)
    hub_server.fail("GET /org/plain/", "flip", 1)
    hub_server.fail("GET /store/", "flip", 3)
    plain = [{**request, "repo_id": "org/plain"} for request in requests]
    plain.append({**plain[0], "sha256": hashlib.sha256(contents["weights.bin"]).hexdigest()})
    answers, _ = pull(tmp_path, hub_server, *plain, HF_HUB_DISABLE_SYMLINKS="1", HF_HUB_CACHE=str(tmp_path / "x"))
    assert one_sentence(answers[0], "another content")
    for answer, name in ((answers[1], "config.json"), (answers[2], "weights.bin")):
        with open(answer, "rb") as file:
            assert file.read() == contents[name]
        assert not os.path.islink(answer)


def test_a_listing_with_a_name_that_leads_outside_is_refused(tmp_path, hub_server):
    names = ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "C:evil", "a//b", "./evil"]
    for i, name in enumerate(names):
        hub_server.commit(f"org/model{i}", {"config.json": b"{}", name: b"evil"})
    answers, _ = pull(tmp_path, hub_server, *({"repo_id": f"org/model{i}"} for i in range(len(names))))
    for i, (name, answer) in enumerate(zip(names, answers, strict=True)):
        assert one_sentence(answer, f"org/model{i}", repr(name), "leads out of its folder")


def test_a_token_is_told_to_the_hub_and_to_nobody_else(tmp_path, hub_server):
    token = "hf_" + "Zq7" * 11
    hub_server.tokens[token] = {"org"}
    hub_server.commit("org/secret", {"weights.bin": os.urandom(200_000)})
    hub_server.private.add("org/secret")
    request = {"repo_id": "org/secret", "filename": "weights.bin"}
    (answer,), errors = pull(tmp_path, hub_server, request, HF_TOKEN=token)
    assert os.path.isfile(answer)
    assert hub_server.leaks == []  # the store is another host
    (stranger,), _ = pull(tmp_path / "other", hub_server, request)
    assert one_sentence(stranger, "There is no repository org/secret", "or it is private", "HF_TOKEN")
    said = [answer, errors]
    for wrong in (token[:-1] + "x", token[:-1] + "\u2019", token + "\x01"):
        hub_server.commit("org/other", {"weights.bin": b"x"})
        (answer,), errors = pull(tmp_path, hub_server, {**request, "repo_id": "org/other"}, HF_TOKEN=wrong)
        assert one_sentence(answer), answer
        said += [answer, errors]
    (answer,), errors = pull(tmp_path, hub_server, {**request, "repo_id": "org/none"}, HF_TOKEN=token)
    assert one_sentence(answer, "no repository org/none")
    written = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(token[:-1] in text for text in [*said, answer, errors, *written])


def below(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_headers_that_are_paths_write_nothing(tmp_path, hub_server):
    outside = tmp_path / "outside"
    outside.mkdir()
    etags = [f'"{outside}/site.pth"', '"../../../outside/site.pth"', '"..\\\\..\\\\site.pth"', '".."', '""', 'W/"a/b"',
             '"C:site.pth"', '".hidden"', f'"{"a" * 300}"']  # fmt: skip
    headers = [{"ETag": etag} for etag in etags] + [{"X_Linked_Etag": etags[0]}, {"X_Repo_Commit": "../../../outside"}]
    asked = []
    for i, bad in enumerate(headers):
        hub_server.commit(f"org/m{i}", {"config.json": b"{}"})
        hub_server.fail(f"(HEAD|GET) /org/m{i}/resolve", "serve", 99, **bad)
        asked.append({"repo_id": f"org/m{i}", "filename": "config.json"})
    # The commit of an answer that a file is missing names a folder too, and so does that of a redirect.
    hub_server.fail("HEAD /org/m0/resolve/main/none", "serve", 99, X_Repo_Commit=str(outside))
    hub_server.faults.reverse()
    asked.append({"repo_id": "org/m0", "filename": "none.json"})
    hub_server.commit("org/large", {"weights.bin": os.urandom(200_000)})
    hub_server.fail("HEAD /org/large/resolve", "serve", 99, X_Linked_Etag=etags[1])
    asked.append({"repo_id": "org/large", "filename": "weights.bin"})
    answers, _ = pull(tmp_path, hub_server, *asked)
    for request, answer in zip(asked, answers, strict=True):
        assert one_sentence(answer, "not a plain name", "nothing was written"), (request, answer)
    assert below(outside) == set()
    assert not [path for path in (tmp_path / "hf").rglob("*") if path.is_file() or path.is_symlink()]
    # Other users of the client, such as transformers, are kept from it too.
    first = """
import hub, sys
from huggingface_hub import hf_hub_download
for name in sys.stdin.readline().split():
    try:
        hub.pull("org/fine", "config.json")
        print(hf_hub_download(name, "config.json"))
    except hub.HubError as error:
        print(error, file=sys.stderr)
sys.exit()
"""
    hub_server.commit("org/fine", {"config.json": b"{}"})
    done = subprocess.run(
        [sys.executable, "-c", first], input="org/m0 org/m1\n", capture_output=True, text=True, timeout=600,
        env=hub_server.environment(tmp_path / "hf"),
    )  # fmt: skip
    assert done.stdout == "" and done.stderr.count("not a plain name") == 2, done.stderr
    assert below(outside) == set()


def test_a_link_out_of_the_cache_is_not_followed(tmp_path, hub_server):
    hub_server.commit("org/model", {"config.json": b"{}"})
    request = {"repo_id": "org/model", "filename": "config.json"}
    (path,), _ = pull(tmp_path, hub_server, request)
    (tmp_path / "secret").write_bytes(b"{}")
    os.unlink(path)
    os.symlink(tmp_path / "secret", path)
    (answer,), _ = pull(tmp_path, hub_server, request)
    assert one_sentence(answer, path, str(tmp_path / "secret"), "outside of the cache")
    # A folder of the cache may be on another disk, though.
    (tmp_path / "hf" / "hub" / "models--org--model").rename(tmp_path / "moved")
    (tmp_path / "hf" / "hub" / "models--org--model").symlink_to(tmp_path / "moved")
    os.unlink(path)
    assert pull(tmp_path, hub_server, request)[0] == [path]


def test_answers_without_end_are_ended(tmp_path, hub_server):
    small, large = b"{}", os.urandom(200_000)
    digest = hashlib.sha256(large).hexdigest()
    faults = {
        "store": ("weights.bin", "GET /store/", "endless", {}, "More than the 200,000 bytes"),
        "config": ("config.json", "GET /org/config/resolve", "endless", {}, "More than the 2 bytes"),
        "list": (None, "GET /api/models/org/list", "endless", {}, "More than the 16,777,216 bytes"),
        "longer": ("config.json", "GET /org/longer/resolve", "serve", {"Content_Length": "999"}, "More than the 2"),
        "packed": ("config.json", "GET /org/packed/resolve", "serve", {"Content_Encoding": "gzip"}, "packed"),
        "huge": ("config.json", "HEAD /org/huge/resolve", "serve", {"Content_Length": "9" * 12}, "67,108,864 at most"),
        "secret": (None, "GET /api/models/org/secret", "endless", {}, "There is no repository org/secret"),
    }
    requests = []
    for name, (filename, match, kind, headers, _) in faults.items():
        hub_server.commit(f"org/{name}", {"weights.bin": large, "config.json": small})
        hub_server.fail(match, kind, 99 if name != "store" else 1, **headers)
        requests.append({"repo_id": f"org/{name}", **({"filename": filename} if filename else {})})
    hub_server.private.add("org/secret")
    answers, _ = pull(tmp_path, hub_server, *requests)
    for (name, (*_, words)), answer in zip(faults.items(), answers, strict=True):
        assert one_sentence(answer, words), (name, answer)
        assert len(answer) < 600
    kept = [path for path in (tmp_path / "hf").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in kept) <= 300_000
    (path,), _ = pull(tmp_path, hub_server, {**requests[0], "sha256": digest})
    with open(path, "rb") as file:
        assert file.read() == large


# Shorter than the real ones: the test has to see the end.
IMPATIENT = """
import hub.answers
hub.answers.HEADER_SECONDS = hub.answers.WINDOW_SECONDS = 0.3
hub.answers.REQUESTS = 20
"""


def test_answers_that_trickle_are_ended(tmp_path, hub_server):
    kinds = [
        ("trickle", "GET /store/", "weights.bin", {}, "arrives with less than"),
        ("trickle-headers", "HEAD /org/m1/resolve", "config.json", {}, "headers of the answer"),
        ("trickle-headers", "GET /api/models/org/m2", None, {}, "headers of the answer"),
        ("trickle", "GET /api/models/org/m3", None, {"Content_Length": "100000"}, "arrives with less than"),
        # Over and over to another address.
        (307, "GET /api/models/org/m4", None, {"Location": "/api/models/org/m4"}, "was asked for 20 times"),
    ]
    requests = []
    for i, (kind, match, filename, headers, _) in enumerate(kinds):
        hub_server.commit(f"org/m{i}", {"weights.bin": os.urandom(200_000), "config.json": b"{}"})
        hub_server.fail(match, kind, 999, **headers)
        requests.append({"repo_id": f"org/m{i}", **({"filename": filename} if filename else {})})
    answers, _ = pull(tmp_path, hub_server, *requests, first=IMPATIENT)
    for (*_, words), answer in zip(kinds, answers, strict=True):
        assert one_sentence(answer, words), answer


def test_a_hub_does_not_say_how_long_to_wait(tmp_path, hub_server):
    hub_server.commit("org/model", {"weights.bin": os.urandom(200_000)})
    first = """
import sys, time
waits = []
time.sleep = waits.append
"""
    last = "\nprint(sum(waits), max(waits), file=sys.stderr)"
    for headers in ({"Retry_After": "864000"}, {"Retry_After": "9" * 5000}, {"RateLimit": '"api";r=0;t=864000'}):
        hub_server.faults.clear()
        hub_server.fail("GET /store/", 429, 99, **headers)
        done = subprocess.run(
            [sys.executable, "-c", first + PULL + last], capture_output=True, text=True, timeout=600,
            input=json.dumps([{"repo_id": "org/model", "filename": "weights.bin"}]),
            env=hub_server.environment(tmp_path / "hf"),
        )  # fmt: skip
        (answer,) = json.loads(done.stdout)
        assert one_sentence(answer, "answers 429", "try again later"), answer
        total, longest = map(float, done.stderr.splitlines()[-1].split())
        assert 0 < total < 90 and longest < 30


def test_what_a_hub_says_is_short_and_steers_no_terminal(tmp_path, hub_server):
    said = "\x1b]0;title\x07\x1b[31m" + "no " * 5000
    for name in ("error", "warning"):
        hub_server.commit(f"org/{name}", {"config.json": b"{}"})
    hub_server.fail("HEAD /org/error/", 403, 9, X_Error_Message=said)
    hub_server.fail("HEAD /org/warning/", "serve", 9, X_HF_Warning=f"topic; {said}")
    requests = [{"repo_id": f"org/{name}", "filename": "config.json"} for name in ("error", "warning")]
    (refused, fine), errors = pull(tmp_path, hub_server, *requests)
    assert one_sentence(refused, "answers 403", "\\x1b]0;title") and len(refused) < 500
    assert os.path.isfile(fine)  # not every release prints the warning
    for text in (refused, errors):
        assert text.replace("\n", "").isprintable() and len(text) < 1000


def test_downloads_do_not_leave_http_for_xet(tmp_path, hub_server):
    """Where a Hub offers it, its client in Rust would fetch, and no limit would hold."""
    large = os.urandom(200_000)
    hub_server.commit("org/model", {"weights.bin": large})
    refresh = {"X_Xet_Refresh_Route": f"{hub_server.url}/xet-token"}
    hub_server.fail("HEAD /org/model", "serve", 9, X_Xet_Hash="a" * 64, **refresh)
    request = {"repo_id": "org/model", "filename": "weights.bin"}
    (path,), _ = pull(tmp_path, hub_server, request, HF_HUB_DISABLE_XET="0")
    with open(path, "rb") as file:
        assert file.read() == large
    assert hub_server.count("xet-token") == 0 and hub_server.count("GET /store/") == 1


def test_a_full_disk_is_one_sentence(tmp_path, hub_server):
    large = os.urandom(200_000)
    hub_server.commit("org/model", {"weights.bin": large})
    request = {"repo_id": "org/model", "filename": "weights.bin"}
    first = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    (answer,), _ = pull(tmp_path, hub_server, request, first=first)
    assert one_sentence(answer, "no room for weights.bin of org/model", str(tmp_path / "hf"), "HF_HOME")
    first = "import shutil\nfrom types import SimpleNamespace\n"
    first += "shutil.disk_usage = lambda path: SimpleNamespace(free=50_000)\n"
    (answer,), _ = pull(tmp_path, hub_server, request, first=first)
    assert one_sentence(answer, "weights.bin of org/model has ", "room for 50,000", "HF_HOME")
    assert hub_server.count("GET /store/") == 2
    with open(pull(tmp_path, hub_server, request)[0][0], "rb") as file:
        assert file.read() == large


def unreachable(taken: socket.socket) -> str:
    """An address at which connections are refused: bound but not listening."""
    taken.bind(("127.0.0.1", 0))
    return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_no_connection_is_said_soon(tmp_path, hub_server):
    request = {"repo_id": "org/model", "filename": "weights.bin"}
    with socket.socket() as taken:
        endpoint = unreachable(taken)
        (answer,), errors = pull(tmp_path, hub_server, request, HF_ENDPOINT=endpoint)
    assert one_sentence(answer, "weights.bin", endpoint) and "checkpoint" not in answer  # an option of some callers
    assert "Retrying" not in errors  # as huggingface_hub on its own does, for 23 s

    (answer,), _ = pull(tmp_path, hub_server, request, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1")
    assert one_sentence(answer, "weights.bin", "HF_HUB_OFFLINE")


@pytest.mark.slow  # the client tries five times
def test_a_hub_that_fails_is_one_sentence(tmp_path, hub_server):
    hub_server.commit("org/model", {"weights.bin": b"tensors"})
    hub_server.status["org/model"] = 503
    (answer,), _ = pull(tmp_path, hub_server, {"repo_id": "org/model", "filename": "weights.bin"})
    assert one_sentence(answer, "weights.bin", "org/model")

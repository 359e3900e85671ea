"""moto's S3 on loopback, in a process of its own: engines that wait for an answer may hold this one's lock."""

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.request import Request, urlopen

__all__ = ["ObjectStore"]


class ObjectStore:
    """``with ObjectStore() as store`` serves empty buckets.

    Attributes:
        environment: variables that lead boto's clients (s3fs) and Rust's `object_store` (LanceDB) to it.
    """

    def __enter__(self) -> "ObjectStore":
        self._process = subprocess.Popen([sys.executable, __file__], stdin=-1, stdout=-1, stderr=-3, text=True)
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the object store ended with status {self._process.wait()}")
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",  # object_store refuses plain HTTP otherwise
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Nothing of the user's own, and no proxy, between the tests and the store.
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return self

    def bucket(self, name: str) -> str:
        """Make an empty bucket; its URL."""
        # Any signature will do, but the service has to be named in one.
        scope = "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        urlopen(Request(f"{self.url}/{name}", method="PUT", headers={"Authorization": scope}), timeout=600).close()
        return f"s3://{name}"

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")  # the end of its input ends it, and so does our death
        self._process.wait()


def installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("moto", "flask", "s3fs"))


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    service, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environ: dict, start_response: Callable) -> Iterable[bytes]:
        # moto looks whether there is an object and puts one later; of two commits at once a real store refuses one.
        with turn:
            return service(environ, start_response)

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # nothing beside this file stands in for a package
    _serve()

"""Who may ask, over HTTP and gRPC, with tokens and certificates; what a client can hold up; what is told of a fault."""

from __future__ import annotations

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import BackendError, ImageError, NotFoundError, UsageError
from deploykit.runtime.serve.access import Access
from deploykit.runtime.serve.connections import HEADERS_BYTES, connections_of
from deploykit.runtime.serve.core.failures import RefusedError, failure_of
from deploykit.runtime.serve.core.options import ServeOptions, is_loopback
from tests.serving import ASSETS, CellNetwork, load_markers, running, served, wait_for

grpc = pytest.importorskip("grpc", reason="grpcio (extra serve) is not installed")
triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] (extra dev) is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402  # after the question whether it is there

TOKEN, OTHER = "a-token-of-many-characters", "another-token-of-many"
IMAGE = (ASSETS / "markers.jpg").read_bytes()


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    file = tmp_path / "tokens"
    file.write_text(f"# two\n{OTHER}\n\n{TOKEN}\n")
    return str(file)


def test_a_token_opens_everything_but_health_and_the_page(tokens: str) -> None:
    network = CellNetwork()
    with running(["cells.onnx"], network.load, token_file=tokens, grpc_port=0) as (server, _):
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert httpx.get(server.url + path).status_code == 200
        for path in ("/v1/models", "/v2", "/v2/models/cells", "/metrics", "/openapi.json", "/docs"):
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
                answer = httpx.get(server.url + path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            for token in (TOKEN, OTHER):
                answer = httpx.get(server.url + path, headers={"authorization": f"bearer {token}"})
                assert answer.status_code == 200
        with triton.InferenceServerClient(server.grpc_address) as client:
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException) as refused:
                client.get_server_metadata()
            assert refused.value.status() == "StatusCode.UNAUTHENTICATED"
            assert client.get_server_metadata(headers={"authorization": f"Bearer {TOKEN}"}).name == "deploykit"


@pytest.mark.parametrize("text", ["", "# nothing\n", "short\n"])
def test_a_file_without_a_good_token_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(UsageError, match="at least 16 characters"):
        Access(str(tmp_path / "tokens"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "whoever reaches 0.0.0.0"),
        ({"host": "::"}, "whoever reaches ::"),
        ({"host": "server.example"}, "--token-file"),
        ({"port": 70000}, "65535"),
        ({"queue": 0}, "queue must be at least 1"),
        ({"timeout": float("nan")}, "timeout must be at least"),
        ({"tls_cert": __file__}, "both tls_cert and tls_key"),
        ({"tls_client_ca": __file__}, "over TLS"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ServeOptions(**options)


def test_only_this_machines_own_addresses_are_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "localhost.example", "", "10.0.0.1")))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ca.pem``, and the certificates and keys ``server`` and ``client`` that it signed, in a folder."""
    openssl = shutil.which("openssl") or pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj")
    run(*new, "/CN=ca", "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("server", "client"):
        run(*new, f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def test_certificates_of_clients_over_http_and_grpc(certificates: Path) -> None:
    files = {
        name: str(certificates / name) for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")
    }
    options = {"tls_cert": files["server.pem"], "tls_key": files["server.key"], "tls_client_ca": files["ca.pem"]}
    with running(["cells.onnx"], CellNetwork().load, grpc_port=0, **options) as (server, _):
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=files["ca.pem"])
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/v2/health/live", verify=context)
        context.load_cert_chain(files["client.pem"], files["client.key"])
        assert httpx.get(f"{server.url}/v2/health/ready", verify=context).status_code == 200
        tls = {"ssl": True, "root_certificates": files["ca.pem"]}
        mine = {"private_key": files["client.key"], "certificate_chain": files["client.pem"]}
        with triton.InferenceServerClient(server.grpc_address, **tls, **mine) as client:
            assert client.is_server_live()
        with (
            triton.InferenceServerClient(server.grpc_address, **tls) as client,
            pytest.raises(InferenceServerException),
        ):
            client.get_server_metadata()


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nothing")
    files = {"tls_cert": str(tmp_path / "x.pem"), "tls_key": str(tmp_path / "x.pem")}
    with pytest.raises(UsageError, match="certificate"), served(["x.onnx"], CellNetwork().load, **files):
        pass


def test_who_sends_headers_slowly_is_sent_away_and_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.runtime.serve.server.connections_of", lambda most: connections_of(most, 0.3))
    with running(["cells.onnx"], CellNetwork().load, connections=4) as (server, _):
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"GET /v2/health/live HTTP/1.1\r\nhost:")
            assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
            slow.settimeout(10)
            assert slow.recv(100) == b""
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        wait_for(lambda: httpx.get(f"{server.url}/v2/health/live").status_code == 503)
        for one in crowd:
            one.close()
        wait_for(lambda: httpx.get(f"{server.url}/v2/health/live").status_code == 200)


HEAD = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\n"
CHUNKS = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def send_often(connection: socket.socket, data: bytes) -> None:
    """Send 16 MiB in all."""
    for _ in range((1 << 24) // len(data)):
        connection.sendall(data)


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (HEAD, b"x" * 1000),
        (HEAD, b"x: y\r\n" * 100),
        (b"GET /", b"x" * 1000),
        (CHUNKS + b"1\r\nx\r\n0\r\n", b"x: y\r\n" * 100),
        (CHUNKS + b"1;", b"x" * 1000),
    ],
    ids=["a name", "many lines", "a path", "lines after a body", "the length of a chunk"],
)
def test_headers_without_end_are_not_kept(begin: bytes, more: bytes) -> None:
    with (
        running(["cells.onnx"], CellNetwork().load) as (server, _),
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as endless,
    ):
        endless.settimeout(10)
        endless.sendall(begin)
        with pytest.raises(ConnectionError):  # it was closed at the other end
            send_often(endless, more)
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def test_headers_that_are_too_large_are_told_so() -> None:
    with (
        running(["cells.onnx"], CellNetwork().load) as (server, _),
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as large,
    ):
        large.settimeout(10)
        large.sendall(HEAD + b"x: y\r\n" * (HEADERS_BYTES // 6))
        assert large.recv(100).startswith(b"HTTP/1.1 431")


def test_a_request_may_come_with_the_body_of_one_that_is_answered_already() -> None:
    with (
        running(["cells.onnx"], CellNetwork().load) as (server, _),
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client,
    ):
        client.settimeout(10)
        client.sendall(b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 150000\r\n\r\n")
        assert client.recv(10000).startswith(b"HTTP/1.1 405")
        client.sendall(bytes(150000) + b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_body_may_come_in_chunks_of_a_byte() -> None:
    body = b"no image" * 4000
    with (
        running(["cells.onnx"], CellNetwork().load) as (server, _),
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as slow,
    ):
        slow.settimeout(10)
        slow.sendall(CHUNKS + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert slow.recv(1000).startswith(b"HTTP/1.1 400")


def test_what_follows_a_body_is_no_header_of_its_request(tokens: str) -> None:
    with (
        running(["cells.onnx"], CellNetwork().load, token_file=tokens) as (server, _),
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client,
    ):
        client.settimeout(10)
        client.sendall(CHUNKS + b"1\r\nx\r\n0\r\nauthorization: Bearer %s\r\n\r\n" % TOKEN.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 401")


def test_a_body_that_drips_has_the_time_of_a_request() -> None:
    with running(["cells.onnx"], CellNetwork().load, timeout=0.3) as (server, _):
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\nabc")
            slow.settimeout(10)
            assert slow.recv(1000).startswith(b"HTTP/1.1 504")


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A server of an image at ``/x.jpg``; all else redirects to another name of this machine."""

    def do_GET(self) -> None:
        if self.path != "/x.jpg":
            self.send_response(302)
            self.send_header("location", f"http://localhost:{self.server.server_port}/x.jpg")  # type: ignore[attr-defined]
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-length", str(len(IMAGE)))
        self.end_headers()
        self.wfile.write(IMAGE)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_are_fetched_from_the_hosts_that_are_named(elsewhere: str) -> None:
    with served(load=load_markers, allow_url=("127.0.0.1",)) as (address, _):

        def ask(url: str) -> httpx.Response:
            return httpx.post(f"{address}/v1/predict", json={"url": url}, timeout=30)

        good = ask(f"{elsewhere}/x.jpg")
        assert good.status_code == 200
        assert good.json()["detections"]
        assert "localhost" in ask(f"{elsewhere}/away").json()["message"]
        assert ask(f"{elsewhere}/away").status_code == 502
        for url in (
            "http://localhost/x.jpg",
            "http://127.0.0.1@evil.example/",
            "file:///etc/passwd",
            "rtsp://127.0.0.1/",
        ):
            assert ask(url).status_code == 400, url


SECRET = "/srv/models/secret name/best.onnx"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageError(f"{SECRET} is not a complete image, see /usr/lib/python3/x.py:5"), 400),
        (NotFoundError(f"a model was expected at {SECRET}"), 404),
        (BackendError(f"ONNX Runtime failed in {SECRET}"), 500),
        (ValueError(SECRET), 500),
        (MemoryError(), 503),
        (TimeoutError(), 504),
        (RefusedError(503, "later", 1), 503),
    ],
)
def test_a_client_is_told_no_path(error: Exception, status: int) -> None:
    failure = failure_of(error, [SECRET])
    assert failure.status == status
    assert "/" not in failure.message
    assert "srv" not in failure.message
    assert failure.inside == (status == 500 or isinstance(error, MemoryError))


@given(st.lists(st.text(st.characters(categories=("L", "N")), min_size=1), min_size=2, max_size=5))
def test_no_folder_of_a_path_passes(parts: list[str]) -> None:
    folders = [f"{part}_folder" for part in parts[:-1]]
    message = failure_of(ImageError(f"the file /{'/'.join(folders)}/{parts[-1]}.jpg is damaged")).message
    assert message == f"the file {parts[-1]}.jpg is damaged"


def test_an_address_stays_in_a_message() -> None:
    message = "http://127.0.0.1/a/b.jpg answered 404"
    assert failure_of(ImageError(message)).message == message


def test_a_page_of_somebody_else_cannot_ask_a_server_of_this_machine(tokens: str) -> None:
    network = CellNetwork()
    with running(["cells.onnx"], network.load, allow_host=("models.example",)) as (server, _):
        models = f"{server.url}/v1/models"
        for name, status in (("evil.example", 421), ("localhost:8000", 200), ("[::1]", 200), ("models.example", 200)):
            assert httpx.get(models, headers={"host": name}).status_code == status, name
        for site, status in (("cross-site", 403), ("same-origin", 400), ("none", 400)):
            answer = httpx.post(f"{server.url}/v1/predict", headers={"sec-fetch-site": site})
            assert answer.status_code == status, site
    with running(["cells.onnx"], network.load, token_file=tokens) as (server, _):
        headers = {"host": "models.example", "authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_a_host_that_is_no_name_is_refused_and_no_fault() -> None:
    with served(["cells.onnx"], CellNetwork().load) as (url, _):
        for host in ("[::1", "[", "[x]:1"):
            answer = httpx.get(f"{url}/v1/models", headers={"host": host})
            assert (answer.status_code, answer.json()["message"]) == (400, "the header Host is no name"), host
        assert httpx.get(f"{url}/v1/models", headers={"host": "[::1]"}).status_code == 200


def test_bytes_that_are_no_message_are_the_clients_fault_over_grpc(
    tokens: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = "/inference.GRPCInferenceService"
    garbage = b"\x0a\xff\xff\xff\xff\xff"
    with (
        running(["cells.onnx"], CellNetwork().load, grpc_port=0, token_file=tokens) as (server, _),
        grpc.insecure_channel(server.grpc_address) as channel,
    ):
        for method in ("ModelInfer", "ModelReady", "ServerMetadata", "RepositoryIndex"):
            call = channel.unary_unary(f"{place}/{method}")
            with pytest.raises(grpc.RpcError) as refused:
                call(garbage)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, "before the message is read"
            with pytest.raises(grpc.RpcError) as refused:
                call(garbage, metadata=[("authorization", f"Bearer {TOKEN}")])
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert refused.value.details() == f"the request is no message of {method}"
        stream = channel.stream_stream(f"{place}/ModelStreamInfer")
        answers = list(stream(iter([garbage, garbage]), metadata=[("authorization", f"Bearer {TOKEN}")]))
    assert len(answers) == 2, "a stream goes on"
    assert all(b"the request is no message of ModelStreamInfer" in answer for answer in answers)
    assert not caplog.records, "what a client sends is not worth a traceback in the log"

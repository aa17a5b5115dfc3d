"""A hub on this machine: answers what huggingface_hub asks for a file, with gates, tokens and broken-off downloads."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"


class FakeHub:
    """What the hub has, and what it was asked.

    Attributes:
        files: content by "owner/name/file".
        gated: models that are given to holders of `granted` tokens only.
        tokens: that exist.
        granted: tokens that passed the gates.
        requests: method, path and authorisation of every request.
        limits: bytes after which each of the next downloads breaks off.
        starts: where downloads started.
        answer: a status that the hub gives to everything; 0 for none.
    """

    def __init__(self):
        self.files, self.gated, self.tokens, self.granted = {}, set(), {TOKEN}, set()
        self.requests, self.answer, self.etag, self.limits, self.starts = [], 0, "", [], []

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        if "/resolve/" not in handler.path:
            return self.refuse(handler, 404, "")
        owner, name, _, revision, *rest = handler.path.strip("/").split("/")
        model, file = f"{owner}/{name}", "/".join(rest)
        given = (handler.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.requests.append((handler.command, handler.path, given))
        if self.answer:
            return self.refuse(handler, self.answer, "")
        if given and given not in self.tokens:
            return self.refuse(handler, 401, "", "Invalid credentials in Authorization header")
        if model in self.gated and given not in self.granted:
            return self.refuse(handler, 403 if given else 401, "GatedRepo")
        if not any(path.startswith(model + "/") for path in self.files):
            return self.refuse(handler, 404 if given else 401, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(handler, 404, "RevisionNotFound")
        if f"{model}/{file}" not in self.files:
            return self.refuse(handler, 404, "EntryNotFound")
        return self.give(handler, self.files[f"{model}/{file}"])

    def refuse(self, handler: BaseHTTPRequestHandler, status: int, code: str, message: str = "") -> None:
        handler.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", message)):
            if value:
                handler.send_header(header, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def give(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("ETag", f'"{self.etag or hashlib.sha256(content).hexdigest()}"')
        handler.send_header("Content-Length", str(len(part)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if handler.command == "GET":
            self.starts.append(start)
            handler.wfile.write(part[: self.limits.pop(0)] if self.limits else part)
            handler.close_connection = True


@contextmanager
def running():
    """Yield a hub and its address."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hub.respond(self)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

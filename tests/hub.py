"""A small Hub on the loopback interface: what huggingface_hub asks for when a model is pushed and loaded again.

Every file is taken in the commit itself ("regular" upload), which the real protocol allows for small files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

USER, TOKEN = "tester", "hf_loopback"


class Repository:
    """Commits of one repository, newest last: each a map of paths to contents."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: list[tuple[str, dict[str, bytes]]] = [(hashlib.sha1(b"").hexdigest(), {})]

    @property
    def head(self) -> tuple[str, dict[str, bytes]]:
        return self.commits[-1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        return self.head if revision == "main" else next((each for each in self.commits if each[0] == revision), None)


def blob(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: dict[str, Repository]
    requests: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append(f"{self.command} {path}")
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return method(self, body, *match.groups())
        return self.answer(404, {"error": f"no route {path}"})

    do_GET = do_HEAD = do_POST = serve  # noqa: N815

    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository | None:
        found = self.repositories.get(name)
        if found is None or (found.private and not self.signed_in()):
            self.answer(
                404 if self.signed_in() else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound"
            )
            return None
        return found

    def create(self, body: bytes) -> None:
        if not self.signed_in():
            return self.answer(401, {"error": "Invalid username or password."})
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"http://{self.headers['Host']}/{name}"
        if name in self.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.repositories[name] = Repository(private)
        return self.answer(200, {"url": url, "name": name, "id": name})

    def whoami(self, _: bytes) -> None:
        self.answer(200, {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self, _: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, _: str) -> None:
        if (repository := self.repository(name)) is not None:
            files = repository.head[1]
            entries = []
            for asked in json.loads(body)["files"]:
                entry = {"path": asked["path"], "uploadMode": "regular", "shouldIgnore": False}
                known = {"oid": blob(files[asked["path"]])} if asked["path"] in files else {}
                entries.append(entry | known)
            self.answer(200, {"files": entries})

    def commit(self, body: bytes, name: str, _: str) -> None:
        if (repository := self.repository(name)) is not None:
            files = dict(repository.head[1])
            for line in filter(None, body.splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            sha = hashlib.sha1(f"{len(repository.commits)}{sorted(files)}".encode()).hexdigest()
            repository.commits.append((sha, files))
            url = f"http://{self.headers['Host']}/{name}/commit/{sha}"
            self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def info(self, _: bytes, name: str, revision: str | None) -> None:
        if (repository := self.repository(name)) is not None:
            found = repository.at(revision or "main")
            if found is None:
                return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": path} for path in found[1]]
            date = "2026-01-01T00:00:00.000Z"
            facts = {"private": repository.private, "tags": [], "downloads": 0, "likes": 0, "createdAt": date}
            self.answer(200, {"_id": "1", "id": name, "modelId": name, "sha": found[0], "siblings": siblings, **facts})
        return None

    def tree(self, _: bytes, name: str, revision: str) -> None:
        if (repository := self.repository(name)) is not None:
            _, files = repository.at(revision) or repository.head
            entries = [{"type": "file", "path": p, "oid": blob(d), "size": len(d)} for p, d in files.items()]
            self.answer(200, entries)

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        if (repository := self.repository(name)) is not None:
            found = repository.at(revision)
            if found is None or path not in found[1]:
                code = "RevisionNotFound" if found is None else "EntryNotFound"
                return self.answer(404, {"error": code}, X_Error_Code=code)
            data = found[1][path]
            self.answer(200, data, ETag=f'"{blob(data)}"', X_Repo_Commit=found[0], Accept_Ranges="none")
        return None


NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    ("/api/whoami-v2", Handler.whoami),
    ("/api/repos/create", Handler.create),
    ("/api/validate-yaml", Handler.validate),
    (rf"/api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"/api/models/{NAME}/commit/(.+)", Handler.commit),
    (rf"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    (rf"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    (rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def running() -> Iterator[tuple[str, type[Handler]]]:
    """The address of a running, empty Hub, and the handler class that holds its repositories."""
    handler = type("FreshHandler", (Handler,), {"repositories": {}, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        server.server_close()

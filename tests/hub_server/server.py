"""The routes of the Hub, answered as huggingface_hub (1.x and 2.x) expects them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from hub_server.repositories import TOKEN, USER, Commit, Entry, Hub, Repository, Tree, blob_id, is_large
from hub_server.xet import XetFolder


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    lock: threading.RLock

    def log_message(self, *_: Any) -> None:
        pass

    def serve(self) -> None:
        parts = urlsplit(self.path)
        request = f"{self.command} {unquote(parts.path)}"
        body = self.body()
        with self.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            if (status := self.hub.fault(request)) is not None:
                return self.refuse(status, "Broken", "broken on purpose")
            for methods, pattern, method in ROUTES:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in methods.split():
                    named = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                    self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                    return method(self, body, **named)
            self.hub.unknown.append(request)
        return self.refuse(404, "NotFound", "no such route")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def answer(self, code: int, content: Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if content is body else "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: int, error: str, message: str, **headers: str) -> None:
        self.answer(code, {"error": message}, X_Error_Code=error, X_Error_Message=message, **headers)

    @property
    def signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def may_write(self) -> bool:
        if not self.signed_in:
            self.refuse(401, "Unauthorized", "Invalid username or password.")
        return self.signed_in

    def repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.signed_in):
            self.refuse(404 if self.signed_in else 401, "RepoNotFound", "Repository not found")
            return None
        return found

    def commit_at(self, name: str, revision: str) -> tuple[Repository, Commit] | None:
        if (repository := self.repository(name)) is None:
            return None
        found = repository.at(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, found

    def whoami(self, _: bytes) -> None:
        if self.may_write():
            access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
            self.answer(200, {"type": "user", "id": "1", "name": USER, "fullname": USER, "orgs": [], "auth": access})

    def create(self, body: bytes) -> None:
        if not self.may_write():
            return None
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.address}/{name}"
        if not name.startswith(f"{USER}/"):
            return self.refuse(403, "Forbidden", f"You don't have the rights to create a model under {name}")
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(name, private)
        return self.answer(200, {"url": url, "name": name, "id": name})

    def delete(self, body: bytes) -> None:
        if self.may_write():
            asked = json.loads(body)
            self.hub.repositories.pop(f"{asked.get('organization') or USER}/{asked['name']}", None)
            self.answer(200, {})

    def validate(self, _: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (found := self.commit_at(name, revision)) is None:
            return
        tree, entries = found[1].tree, []
        for asked in json.loads(body)["files"]:
            mode = "lfs" if is_large(asked["path"], asked["size"]) else "regular"
            known = {"oid": tree[asked["path"]].key} if asked["path"] in tree else {}
            entries.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self.answer(200, {"files": entries})

    def lfs_batch(self, body: bytes, name: str) -> None:
        if not self.may_write():
            return
        objects = []
        for asked in json.loads(body)["objects"]:
            upload = {"href": f"{self.hub.address}/_lfs/{asked['oid']}", "header": {}}
            verify = {"href": f"{self.hub.address}/_lfs/verify", "header": {}}
            actions = {} if asked["oid"] in self.hub.contents else {"actions": {"upload": upload, "verify": verify}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "BadDigest", "the content has another sha256")
        self.hub.contents[oid] = body
        return self.answer(200, b"", ETag=f'"{oid}"')

    def lfs_verify(self, body: bytes) -> None:
        asked = json.loads(body)
        stored = self.hub.contents.get(asked["oid"])
        self.answer(200 if stored is not None and len(stored) == asked["size"] else 404, {})

    def lfs_get(self, _: bytes, oid: str) -> None:
        self.answer(200, self.hub.contents[oid], ETag=f'"{oid}"')

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (found := self.commit_at(name, revision)) is None:
            return None
        repository, before = found
        tree, title = dict(before.tree), ""
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, before.sha):
                    return self.refuse(412, "PreconditionFailed", "A commit has happened since.")
            elif key == "lfsFile" and not self.hub.knows(value["oid"]):
                return self.refuse(400, "LfsObjectMissing", f"no object for {value['path']}")
            else:
                self.apply(tree, key, value)
        sha = repository.commit(revision, tree, title, before.sha)
        url = f"{self.hub.address}/{name}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def apply(self, tree: Tree, key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            data = base64.b64decode(value["content"])
            tree[path] = Entry(blob_id(data), len(data))
            self.hub.contents[tree[path].oid] = data
        elif key == "lfsFile":
            tree[path] = Entry.large(value["oid"], value["size"])
        elif key == "deletedFile":
            del tree[path]
        else:
            raise NotImplementedError(key)

    def info(self, _: bytes, name: str, revision: str = "main") -> None:
        if (found := self.commit_at(name, revision)) is None:
            return
        repository, commit = found
        card: dict[str, Any] = {}
        if "README.md" in commit.tree:
            text = self.hub.contents[commit.tree["README.md"].key].decode()
            matter = re.match(r"\s*---\n(.*?)\n---", text, re.DOTALL)
            card = yaml.safe_load(matter[1]) if matter else {}
        facts: dict[str, Any] = {"_id": "1", "id": name, "modelId": name, "author": USER, "sha": commit.sha}
        facts |= {"lastModified": commit.date, "createdAt": commit.date, "private": repository.private}
        facts |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "spaces": [], "cardData": card}
        facts |= {name: card.get(name) for name in ("pipeline_tag", "library_name")} | {"tags": card.get("tags") or []}
        self.answer(200, {**facts, "siblings": [{"rfilename": path} for path in sorted(commit.tree)]})

    def tree(self, _: bytes, name: str, revision: str, path: str = "") -> None:
        if (found := self.commit_at(name, revision)) is None:
            return None
        inside = f"{path.strip('/')}/" if path.strip("/") else ""
        chosen = {name: entry for name, entry in found[1].tree.items() if name.startswith(inside)}
        if inside and not chosen:
            return self.refuse(404, "EntryNotFound", f"{path} does not exist")
        recursive = self.query.get("recursive", "false").lower() in ("true", "1")
        here = {name: entry for name, entry in chosen.items() if recursive or "/" not in name[len(inside) :]}
        return self.answer(200, [entry.listed(name) for name, entry in sorted(here.items())])

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        if (found := self.commit_at(name, revision)) is None:
            return
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        self.answer(200, [found[1].tree[path].listed(path) for path in paths if path in found[1].tree])

    def refs(self, _: bytes, name: str) -> None:
        if (repository := self.repository(name)) is not None:
            heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repository.branches.items()]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": s} for n, s in repository.tags.items()]
            self.answer(200, {"branches": heads, "tags": tags, "converts": [], "pullRequests": []})

    def branch(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (repository := self.repository(name)) is None:
            return None
        if revision in repository.branches:
            return self.refuse(409, "Conflict", "Reference already exists")
        start = repository.at(json.loads(body or b"{}").get("startingPoint", "main"))
        if start is None:
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        repository.branches[revision] = start.sha
        return self.answer(201, {})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (found := self.commit_at(name, revision)) is None:
            return None
        asked = json.loads(body)["tag"]
        if asked in found[0].tags:
            return self.refuse(409, "Conflict", "Tag exists")
        found[0].tags[asked] = found[1].sha
        return self.answer(200, {})

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        if (found := self.commit_at(name, revision)) is None:
            return None
        commit = {"X_Repo_Commit": found[1].sha}
        entry = found[1].tree.get(path)
        if entry is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", **commit)
        if entry.sha256 is None:
            return self.answer(200, self.hub.contents[entry.oid], ETag=f'"{entry.oid}"', **commit)
        # To another origin, as the Hub does: a redirect to its own is followed by HEAD, which loses X-Repo-Commit.
        away = self.hub.address.replace("127.0.0.1", "localhost")
        linked = {"X_Linked_Size": str(entry.size), "X_Linked_ETag": f'"{entry.sha256}"'}
        headers = {**commit, **linked, "Location": f"{away}/_lfs/{entry.sha256}"}
        if self.hub.xet is not None and (xet := self.hub.xet.hashes().get(entry.sha256)) is not None:
            route = f"{self.hub.address}/api/models/{name}/xet-read-token/{found[1].sha}"
            headers |= {"X_Xet_Hash": xet, "X_Xet_Refresh_Route": route}
        return self.answer(302, b"", **headers)

    def xet_token(self, _: bytes, name: str, kind: str, revision: str) -> None:
        if self.hub.xet is None or self.repository(name) is None or (kind == "write" and not self.may_write()):
            return self.refuse(404, "NotFound", "no Xet here") if self.hub.xet is None else None
        address, ends = self.hub.xet.address, int(time.time()) + 3600
        headers = {"X_Xet_Cas_Url": address, "X_Xet_Access_Token": "xet", "X_Xet_Token_Expiration": str(ends)}
        return self.answer(200, {"casUrl": address, "accessToken": "xet", "exp": ends}, **headers)

    def discussions(self, _: bytes, name: str) -> None:
        self.answer(200, {"discussions": [], "count": 0, "start": 0})


_REPO = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/models/{_REPO}"
_REV = r"(?P<revision>.+)"
ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("DELETE", "/api/repos/delete", Handler.delete),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"{_API}/preupload/{_REV}", Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("POST", "/_lfs/verify", Handler.lfs_verify),
    ("GET HEAD", "/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_get),
    ("POST", rf"{_API}/commit/{_REV}", Handler.commit),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", Handler.tree),
    ("POST", rf"{_API}/paths-info/{_REV}", Handler.paths_info),
    ("GET", rf"{_API}/refs", Handler.refs),
    ("POST", rf"{_API}/branch/{_REV}", Handler.branch),
    ("POST", rf"{_API}/tag/{_REV}", Handler.tag),
    ("GET", rf"{_API}/xet-(?P<kind>read|write)-token/{_REV}", Handler.xet_token),
    ("GET", rf"{_API}/discussions", Handler.discussions),
    ("GET", rf"{_API}/revision/{_REV}", Handler.info),
    ("GET", _API, Handler.info),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


@contextmanager
def running(xet: Path | None = None) -> Iterator[Hub]:
    """A running, empty Hub; with a folder for ``xet``, large files go there over Xet, else over LFS."""
    hub = Hub(None if xet is None else XetFolder(xet))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub, "lock": threading.RLock()}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

"""What a Hub keeps: repositories of commits, each a tree of entries, and the contents that entries name."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timezone

from hub_server.xet import XetFolder

USER, TOKEN = "tester", "hf_loopback"
_LARGE = (".safetensors", ".bin", ".pt", ".model")
_LARGE_SIZE = 10 * 1024 * 1024


def blob_id(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path: str, size: int) -> bool:
    """Whether a file goes over LFS or Xet, not in the commit."""
    return path.endswith(_LARGE) or size > _LARGE_SIZE


@dataclass(frozen=True)
class Entry:
    """A file of a commit: git's blob id (of the pointer, for a large file), its size, and a large file's sha256."""

    oid: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0

    @classmethod
    def large(cls, sha256: str, size: int) -> Entry:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(blob_id(pointer), size, sha256, len(pointer))

    @property
    def key(self) -> str:
        """Under which the content is kept, and which the client compares with its own file."""
        return self.sha256 or self.oid

    def listed(self, path: str) -> dict[str, object]:
        """As the Hub lists it in a tree."""
        entry: dict[str, object] = {"type": "file", "oid": self.oid, "size": self.size, "path": path}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": self.pointer_size}
        return entry


Tree = dict[str, Entry]


@dataclass(frozen=True)
class Commit:
    sha: str
    tree: Tree
    title: str
    parent: str | None
    date: str


class Repository:
    """Commits by their sha, and the branches and tags that name some."""

    def __init__(self, name: str, private: bool) -> None:
        self.name, self.private = name, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commit("main", {}, "initial commit", None)

    def commit(self, branch: str, tree: Tree, title: str, parent: str | None) -> str:
        entries = sorted((path, entry.oid) for path, entry in tree.items())
        sha = hashlib.sha1(json.dumps([self.name, entries, title, parent, len(self.commits)]).encode()).hexdigest()
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[sha] = Commit(sha, tree, title, parent, date)
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a sha."""
        return self.commits.get(self.branches.get(revision, self.tags.get(revision, revision)))

    def history(self, branch: str = "main") -> list[str]:
        """The titles of a branch's commits, newest first, without the empty first one."""
        titles, commit = [], self.at(branch)
        while commit is not None and commit.parent is not None:
            titles.append(commit.title)
            commit = self.commits[commit.parent]
        return titles


@dataclass
class Hub:
    """All repositories and contents, what was asked, and which requests are to fail.

    ``faults`` are (pattern of "METHOD /path", status) that requests are answered with until they are taken out.
    """

    xet: XetFolder | None = None
    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    faults: list[tuple[str, int]] = field(default_factory=list)

    def fault(self, request: str) -> int | None:
        return next((status for pattern, status in self.faults if re.search(pattern, request)), None)

    def put(self, name: str, files: dict[str, bytes]) -> str:
        """Commit these files, and no others, to a public repository's main branch; the commit."""
        repository = self.repositories.setdefault(name, Repository(name, private=False))
        tree = {}
        for path, data in files.items():
            large = is_large(path, len(data))
            entry = (
                Entry.large(hashlib.sha256(data).hexdigest(), len(data)) if large else Entry(blob_id(data), len(data))
            )
            self.contents[entry.key] = data
            tree[path] = entry
        return repository.commit("main", tree, "files", repository.branches["main"])

    def knows(self, sha256: str) -> bool:
        return sha256 in self.contents or (self.xet is not None and sha256 in self.xet.hashes())

    def paths(self, name: str, revision: str = "main") -> set[str]:
        """The files of a repository."""
        commit = self.repositories[name].at(revision)
        assert commit is not None
        return set(commit.tree)

    def read(self, name: str, path: str, revision: str = "main") -> bytes:
        """The content of a file that did not go over Xet."""
        commit = self.repositories[name].at(revision)
        assert commit is not None
        return self.contents[commit.tree[path].key]

"""A server on this machine that speaks the Hub's protocol, as far as huggingface_hub needs it.

Repositories of models, with files as git and LFS keep them: look at a repository, list and fetch
its files, make one, upload and commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_secret"
LARGE = 1000  # bytes from which a file is an LFS file; the Hub decides by name and content
_ATTRIBUTES = b"*.safetensors filter=lfs\n"


@dataclass
class Hub:
    """The server's state.

    Attributes:
        url: its address.
        commits: files of each commit, oldest first, by name of the repository.
        objects: content of LFS files by sha256, committed or not.
        asked: method and path of every request.
        uploading: set when the first LFS file arrives.
        uploads: cleared to let uploads wait.
    """

    url: str = ""
    commits: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    uploading: threading.Event = field(default_factory=threading.Event)
    uploads: threading.Event = field(default_factory=threading.Event)

    def files(self, name: str) -> dict[str, bytes]:
        """Files that a repository shows, without the Hub's own."""
        return {k: v for k, v in self.commits[name][-1].items() if k != ".gitattributes"}

    def make(self, name: str, **files: bytes) -> None:
        """Make a repository by hand."""
        self.commits[name] = [{".gitattributes": _ATTRIBUTES, **files}]


def commit_id(name: str, number: int) -> str:
    """Hash of a repository's commit, counted from 0."""
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


def _entry(data: bytes) -> dict[str, Any]:
    """A file's size and hash, as the Hub tells them."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if len(data) < LARGE:
        return {"size": len(data), "oid": oid}
    digest = hashlib.sha256(data).hexdigest()
    lfs = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
    return {"size": len(data), "oid": hashlib.sha1(digest.encode()).hexdigest(), "lfs": lfs}


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        changes = self.command in ("POST", "PUT") and not path.startswith("/lfs/")  # signed
        if changes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "Unauthorized", "Invalid username or password.")
            return
        for pattern, act in (
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/(\w+)", self._upload),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        ):
            if found := re.fullmatch(pattern, path):
                self._body = body
                act(*found.groups())
                return
        self._error(404, "EntryNotFound", f"no such page: {path}")

    # --- what a repository holds ---

    def _files(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a revision means and its files; None after telling that it is unknown."""
        commits = self.hub.commits.get(name)
        if commits is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return None
        ids = [commit_id(name, number) for number in range(len(commits))]
        wanted = ids[-1] if revision in (None, "main") else str(revision)
        if wanted not in ids:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return wanted, commits[ids.index(wanted)]

    def _info(self, name: str, revision: str | None) -> None:
        if found := self._files(name, revision):
            entries = [{"rfilename": path, **_entry(data)} for path, data in found[1].items()]
            for entry in entries:
                entry["blobId"] = entry.pop("oid")
            self._say({"_id": "1", "id": name, "sha": found[0], "siblings": entries})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._files(name, revision):
            rows = [{"type": "file", "path": p, **_entry(d)} for p, d in found[1].items()]
            self._say(rows)

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        if path not in found[1]:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        data = found[1][path]
        entry = _entry(data)
        etag = entry.get("lfs", entry)["oid"]
        self._send(200, data, ETag=f'"{etag}"', **{"X-Repo-Commit": found[0]})

    # --- what changes one ---

    def _create(self) -> None:
        wanted = json.loads(self._body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.commits:
            self._error(409, "", "You already created this model repo")
            return
        self.hub.make(name)
        self._say(
            {"url": f"{self.hub.url}/{name}", "private": wanted.get("visibility") == "private"}
        )

    def _validate(self) -> None:
        self._say({"errors": [], "warnings": []})

    def _preupload(self, _name: str, _revision: str) -> None:
        files = json.loads(self._body)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._say({"files": modes})

    def _batch(self, _name: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            for each in json.loads(self._body)["objects"]
        ]
        self._say({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        self.hub.uploading.set()
        self.hub.uploads.wait(60)
        self.hub.objects[oid] = self._body
        self._send(200, b"")

    def _commit(self, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body.splitlines() if line]
        found = self._files(name, revision)
        if found is None:
            return
        files = dict(found[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") != found[0]:
                self._error(412, "", "A commit has happened since. Please refresh and try again.")
                return
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.commits[name].append(files)
        oid = commit_id(name, len(self.hub.commits[name]) - 1)
        self._say(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}
        )

    # --- answers ---

    def _say(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode(), **headers)

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A Hub on a free port of this machine, with no repository."""
    hub = Hub()
    hub.uploads.set()
    handler = type("Answers", (_Answers,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.uploads.set()
        server.shutdown()
        server.server_close()


def environment(hub: Hub, cache: str) -> dict[str, str]:
    """Variables with which another process uses this Hub, and none else."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_CACHE": cache,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # another protocol, of another server
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def use(hub: Hub, cache: str, patch: pytest.MonkeyPatch) -> None:
    """Have this process use the Hub; huggingface_hub reads its variables once, when imported."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    patch.setattr(constants, "HF_HUB_CACHE", cache)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    patch.setenv("HF_TOKEN", TOKEN)

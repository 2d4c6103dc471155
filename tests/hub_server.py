"""A small server that speaks the parts of the Hugging Face Hub's HTTP protocol that huggingface_hub uses.

Repositories with one branch and a history of commits, regular and LFS uploads, metadata, tree and file downloads with
ranges, and faults on demand.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

LARGE = 1 << 16
"""Files from this size on are LFS files."""


@dataclass
class Fault:
    """What requests whose ``METHOD path`` matches ``pattern`` meet, ``times`` times: a status, or 0 for a cut."""

    pattern: str
    status: int
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """The state of the server.

    Attributes
    ----------
    commits
        Of each repository: (commit hash, {path: content}), oldest first.
    objects
        Uploaded LFS objects by SHA-256.
    faults
        Tried in order before anything else.
    requests
        Every request as "METHOD path".
    downloads
        Of repositories, as a listing states and sorts them.
    page
        Repositories on one page of a listing.
    index_apart
        Whether a listing states the card's model index beside its other data, or among them.

    A Space is the repository "spaces/owner/name".
    """

    url: str = ""
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    downloads: dict[str, int] = field(default_factory=dict)
    page: int = 2
    index_apart: bool = True

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """Commit ``files`` on top of what ``repo`` holds."""
        history = self.commits.setdefault(repo, [("0" * 40, {})])
        merged = {**history[-1][1], **files}
        listing = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(merged.items())})
        commit = hashlib.sha1(f"{len(history)}{listing}".encode()).hexdigest()
        history.append((commit, merged))
        return commit

    def put_folder(self, repo: str, folder: Path) -> str:
        """Commit a folder."""
        return self.put(repo, {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a revision; None if there is no such."""
        history = self.commits.get(repo, [])
        if revision == "main":
            return history[-1] if history else None
        return next((c for c in history if c[0] == revision), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str = "", headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"Content-Type": "application/json", "X-Error-Code": code, **(headers or {})})

    def _faulty(self, path: str) -> bool:
        for fault in self.hub.faults:
            if fault.times > 0 and re.search(fault.pattern, f"{self.command} {path}"):
                fault.times -= 1
                self._body()
                if fault.status:
                    self._refuse(fault.status, "RepoNotFound" if fault.status == 404 else "", fault.headers)
                else:  # promise more than is sent, then hang up
                    self.send_response(200)
                    self.send_header("Content-Length", "1000000")
                    self.end_headers()
                    self.wfile.write(b"x" * 1000)
                    self.close_connection = True
                    self.connection.close()
                return True
        return False

    def _any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self._faulty(path):
            return
        for pattern, answer in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                answer(self, *match.groups())
                return
        self._refuse(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815

    def create(self) -> None:
        asked = json.loads(self._body())
        kind = "spaces/" if asked.get("type") == "space" else ""
        if kind and asked.get("sdk") != "gradio":
            self._refuse(400)
            return
        repo = f"{kind}{asked.get('organization') or 'me'}/{asked['name']}"
        status = 409 if repo in self.hub.commits else 200
        self.hub.commits.setdefault(repo, [("0" * 40, {})])
        self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}, status)

    def whoami(self) -> None:
        self._json({"name": "me", "type": "user", "orgs": []})

    def validate_yaml(self) -> None:
        self._body()
        self._json({"errors": [], "warnings": []})

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self.hub.at(repo, revision or "main")
        if found is None:
            self._refuse(404, "RevisionNotFound" if repo in self.hub.commits else "RepoNotFound")
            return
        commit, files = found
        siblings = [{"rfilename": name} for name in files]
        self._json({"id": repo.removeprefix("spaces/"), "sha": commit, "private": False, "siblings": siblings})

    def list(self) -> None:
        """Models whose library or tags hold all filters, a page at a time, and the address of the next."""
        asked = parse_qs(urlsplit(self.path).query)
        found = []
        for repo in self.hub.commits:
            card = front_matter(self.hub.at(repo, "main")[1].get("README.md", b""))
            labels = [*(card.get("tags") or []), card.get("library_name")]
            owner = asked.get("author", [repo.split("/")[0]])[0]
            if repo.startswith(f"{owner}/") and set(asked.get("filter", [])) <= set(labels) and owner != "spaces":
                index = card.pop("model-index", None) if self.hub.index_apart else None
                entry = {"id": repo, "downloads": self.hub.downloads.get(repo, 0), "likes": 0, "private": False}
                entry |= {"tags": labels, "lastModified": "2026-01-02T03:04:05.000Z", "model-index": index}
                found.append(entry | ({"cardData": card} if asked.get("cardData") else {}))
        if asked.get("sort") == ["downloads"]:
            found.sort(key=lambda entry: -entry["downloads"])
        start = int(asked.get("cursor", ["0"])[0])
        query = urlencode({**asked, "cursor": start + self.hub.page}, doseq=True)
        more = {"Link": f'<{self.hub.url}/api/models?{query}>; rel="next"'} if found[start + self.hub.page :] else {}
        content = json.dumps(found[start : start + self.hub.page]).encode()
        self._send(200, content, {"Content-Type": "application/json", **more})

    def tree(self, repo: str, revision: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            self._refuse(404, "RevisionNotFound")
            return
        entries = []
        for name, data in found[1].items():
            entry = {"type": "file", "path": name, "size": len(data), "oid": _etag(data, lfs=False)}
            if len(data) >= LARGE:
                entry["lfs"] = {"oid": _etag(data), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        self._json(entries)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self.hub.at(repo, revision)
        if found is None:
            self._refuse(404, "RevisionNotFound" if repo in self.hub.commits else "RepoNotFound")
        elif name not in found[1]:
            self._refuse(404, "EntryNotFound")
        else:
            data, status = found[1][name], 200
            headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if span:
                first, total = int(span[1]), len(data)
                data, status = data[first : int(span[2]) + 1 if span[2] else total], 206
                headers["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{total}"
            self._send(status, data, headers)

    def preupload(self, repo: str, revision: str) -> None:
        if self.hub.at(repo, revision) is None:
            self._refuse(404, "RepoNotFound")
            return
        files = json.loads(self._body())["files"]
        modes = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for f in files
        ]
        self._json({"files": modes})

    def lfs_batch(self, repo: str) -> None:
        objects = []
        for wanted in json.loads(self._body())["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            self._refuse(400)
            return
        self.hub.objects[oid] = data
        self._send(200)

    def commit(self, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines() if line]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.put(repo, files)
        url = f"{self.hub.url}/{repo}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


REPO, REVISION = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
SPACE = r"(spaces/[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /api/repos/create", Handler.create),
    (r"GET /api/models", Handler.list),
    (rf"GET /api/{SPACE}", Handler.info),
    (rf"GET /api/{SPACE}/revision/{REVISION}", Handler.info),
    (rf"POST /api/{SPACE}/preupload/{REVISION}", Handler.preupload),
    (rf"POST /api/{SPACE}/commit/{REVISION}", Handler.commit),
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"GET /api/models/{REPO}", Handler.info),
    (rf"GET /api/models/{REPO}/revision/{REVISION}", Handler.info),
    (rf"GET /api/models/{REPO}/tree/{REVISION}", Handler.tree),
    (rf"POST /api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    (rf"POST /api/models/{REPO}/commit/{REVISION}", Handler.commit),
    (rf"POST /{REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(\w+)", Handler.lfs_put),
    (rf"(?:GET|HEAD) /{REPO}/resolve/{REVISION}/(.+)", Handler.resolve),
]


def front_matter(card: bytes) -> dict:
    """The YAML between the first two lines of dashes."""
    parts = card.decode().split("---\n", 2)
    return yaml.safe_load(parts[1]) if len(parts) == 3 else {}


def _etag(data: bytes, lfs: bool | None = None) -> str:
    """Git's blob hash of a small file, SHA-256 of a large one."""
    if lfs if lfs is not None else len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving():
    """A running hub on a free local port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

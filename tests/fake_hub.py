"""
A Hugging Face Hub of its own in a thread: what `create_repo`, `upload_folder` and `from_pretrained` ask for, in memory.

Set HF_ENDPOINT to its address, and HF_HUB_DISABLE_XET=1: large files then come by git-lfs, without xet's storage servers.
Faults are put in before a request is answered: `hub.fail("POST", "/commit/", 500, times=2)`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_SecretTokenOfTheFakeHub"
LARGE = re.compile(r"\.safetensors$")
API = r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # hash -> path -> content
    branches: dict[str, str] = field(default_factory=dict)  # name -> hash

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        content = repr((branch, message, sorted(files), len(self.commits))).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def files(self, revision: str) -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class Fault:
    method: str
    path: str
    status: int | None  # None: the connection is cut
    times: int
    body: str


class FakeHub:
    """Use it as a context manager; `url` is its address, `requests` what it was asked: (method, path)."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.requests: list[tuple[str, str]] = []
        self.messages: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, status: int | None, times: int = 1000, body: str = "") -> None:
        self.faults.append(Fault(method, path, status, times, body))

    def count(self, method: str, path: str) -> int:
        return sum(method == asked and path in where for asked, where in self.requests)

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.read_body()
        if fault := self.hub.fault(self.command, path):
            if fault.status is None:
                self.close_connection = True
                self.connection.close()
                return
            return self.answer(fault.status, fault.body.encode())
        for method, pattern, answer in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return answer(self, **match.groupdict())
        self.refuse(404, "NotFound", f"no route for {self.command} {path}")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    # ------------------------------------------------------------------------------------------------- answers

    def answer(self, status: int, content: bytes = b"", **headers) -> None:
        self.send_response(status)
        length = headers.pop("Content_Length", len(content))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send(self, value, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.answer(status, body, X_Error_Code=code, X_Error_Message=message, Content_Type="application/json")

    def may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.refuse(401, "Unauthorized", "Invalid credentials in Authorization header")
        return False

    def repository(self, repo: str) -> Repository | None:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            return self.refuse(401 if found else 404, "RepoNotFound", "Repository not found")
        return found

    def files(self, repo: str, revision: str) -> tuple[Repository, dict[str, bytes]] | None:
        if (found := self.repository(repo)) is None:
            return None
        if (files := found.files(revision)) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, files

    # ------------------------------------------------------------------------------------------------- uploading

    def create(self):
        if not self.may_write():
            return
        wanted = json.loads(self.body)
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        address = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            return self.send(address | {"error": "You already created this model repo"}, 409)
        self.hub.repositories[name] = found = Repository(private=wanted.get("visibility") == "private")
        found.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.send(address)

    def validate_yaml(self):
        self.send({"errors": [], "warnings": []})

    def create_branch(self, repo: str, branch: str):
        if not self.may_write() or (found := self.repository(repo)) is None:
            return
        if branch in found.branches:
            return self.send({"error": "Reference already exists"}, 409)
        found.branches[branch] = found.branches["main"]
        self.send({})

    def preupload(self, repo: str, revision: str):
        if not self.may_write() or (found := self.files(repo, revision)) is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            is_large = LARGE.search(file["path"]) is not None
            answers.append(
                {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            )
            if (content := found[1].get(file["path"])) is not None:
                answers[-1]["oid"] = identity(content, is_large)
        self.send({"files": answers})

    def lfs_batch(self, repo: str):
        if not self.may_write():
            return
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            objects.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in self.hub.large:
                objects[-1]["actions"] = {"upload": {"href": f"{self.hub.url}/large/{wanted['oid']}"}}
        self.send({"transfer": "basic", "objects": objects})

    def store_large(self, sha256: str):
        if hashlib.sha256(self.body).hexdigest() != sha256:
            return self.refuse(400, "BadRequest", "content does not match its hash")
        self.hub.large[sha256] = self.body
        self.answer(200)

    def commit(self, repo: str, revision: str):
        if not self.may_write() or (found := self.files(repo, revision)) is None:
            return
        repository, files = found[0], dict(found[1])
        message = ""
        for line in self.body.splitlines():
            kind, value = (item := json.loads(line))["key"], item["value"]
            if kind == "header":
                message = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        opens = "create_pr=1" in self.path
        sha = repository.commit("refs/pr/1" if opens else revision, files, message)
        self.hub.messages.append(message)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"}
        self.send(answer | ({"pullRequestUrl": f"{self.hub.url}/{repo}/discussions/1"} if opens else {}))

    # ------------------------------------------------------------------------------------------------- downloading

    def info(self, repo: str, revision: str = "main"):
        if (found := self.files(repo, revision)) is not None:
            sha = found[0].branches.get(revision, revision)
            names = [{"rfilename": name} for name in found[1]]
            self.send({"id": repo, "modelId": repo, "sha": sha, "private": found[0].private, "siblings": names})

    def tree(self, repo: str, revision: str, folder: str = ""):
        if (found := self.files(repo, revision)) is None:
            return
        inside = {name: content for name, content in found[1].items() if name.startswith(folder)}
        if folder and not inside:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist")
        rows = [
            {"type": "file", "path": name, "size": len(c), "oid": identity(c, False)} for name, c in inside.items()
        ]
        self.send(rows)

    def resolve(self, repo: str, revision: str, path: str):
        if (found := self.files(repo, revision)) is None:
            return
        repository, files = found
        sha = repository.branches.get(revision, revision)
        if path not in files:
            headers = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found", "X_Repo_Commit": sha}
            return self.answer(404, b"", **headers)
        content = files[path]
        etag = f'"{identity(content, LARGE.search(path) is not None)}"'
        self.answer(200, content, X_Repo_Commit=sha, ETag=etag, Accept_Ranges="none")


def identity(content: bytes, is_large: bool) -> str:
    """The hash that git, or git-lfs, knows a content by."""
    if is_large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


ROUTES = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", API + r"/branch/(?P<branch>.+)", _Handler.create_branch),
    ("POST", API + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", r"/(?P<repo>[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/large/(?P<sha256>[0-9a-f]{64})", _Handler.store_large),
    ("POST", API + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", API, _Handler.info),
    ("GET", API + r"/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", API + r"/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("GET", API + r"/tree/(?P<revision>[^/]+)/(?P<folder>.+)", _Handler.tree),
    ("GET", r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("HEAD", r"/(?P<repo>[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]

"""
A Hub on loopback for tests: the few endpoints that the `huggingface_hub` client uses to make a repository, push into
it and load from it, on the standard library's HTTP server. It speaks plain LFS, no Xet: clients run with
HF_HUB_DISABLE_XET=1. Faults can be planned: a status in place of an answer, or a connection that is cut.

    with HubServer() as hub:
        hub.fail("PUT /lfs", status=500, times=1)
        hub.cut("PUT /lfs", after=1000)
        hub.environment(tmp_path)       # for a process that pushes or loads
        hub.files("me/tiny")            # what the repository shows
"""

import hashlib
import json
import os
import re
import socket
import struct
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_writes"
READ_TOKEN = "hf_reads_only"
USER = "me"
LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".wav")
POINTER_BYTES = 134


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


@dataclass
class Repo:
    """Commits by their ids, in order; each is what the repository holds then."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self):
        self.commit({}, "initial commit")

    def commit(self, files: dict[str, bytes], message: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[oid] = files
        return oid

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def resolve(self, revision: str) -> str | None:
        return self.head if revision == "main" else revision if revision in self.commits else None


@dataclass
class InjectedFailure:
    """What goes wrong with requests that begin with `pattern`, such as "PUT /lfs", `times` times (None: always)."""

    pattern: str
    status: int | None  # None: the connection is cut after `after` bytes of the request's body
    after: int
    times: int | None


class HubServer:
    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[InjectedFailure] = []
        self.refused: dict[str, int] = {}  # statuses by the messages of the commits that get them
        self.requests: list[str] = []  # "METHOD /path STATUS"; CUT where there was none
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """The environment of a process that takes this for the Hub, with a cache of its own."""
        mine = {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        return {**os.environ, **mine, **online, "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}

    def files(self, repo_id: str) -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return repo.commits[repo.head]

    def count(self, pattern: str) -> int:
        """How many requests of a kind came, such as "PUT /lfs"."""
        return sum(request.startswith(pattern) for request in self.requests)

    def fail(self, pattern: str, status: int, times: int | None = None) -> None:
        self.faults.append(InjectedFailure(pattern, status, 0, times))

    def fail_commit(self, message: str, status: int) -> None:
        self.refused[message] = status

    def cut(self, pattern: str, after: int = 0, times: int | None = None) -> None:
        self.faults.append(InjectedFailure(pattern, None, after, times))

    def mend(self) -> None:
        self.faults.clear()

    def fault_of(self, request: str) -> InjectedFailure | None:
        with self.lock:
            for fault in self.faults:
                if request.startswith(fault.pattern) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None


class Answer(Exception):
    """An answer that is no success; raised from anywhere."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("POST", r"/verify/(?P<oid>[0-9a-f]{64})", "lfs_verify"),
        ("GET", r"/api/models/(?P<repo_id>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?", "model_info"),
        ("GET", r"/api/models/(?P<repo_id>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("GET", r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def log_message(self, *_):
        pass

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        fault = self.hub.fault_of(request)
        if fault is not None and fault.status is None:
            self.body(fault.after)
            self.hub.requests.append(f"{request} CUT")
            return self.cut_off()
        self.content = self.body()
        try:
            if fault is not None:
                raise Answer(fault.status, "planned to fail")
            with self.hub.lock:
                status, headers, answer = self.route(path)
        except Answer as error:
            status, headers = error.status, error.headers
            answer = json.dumps({"error": error.message}).encode()
        self.hub.requests.append(f"{request} {status}")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def body(self, limit: int | None = None) -> bytes:
        """The request's body, or its first `limit` bytes."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while (limit is None or len(data) < limit) and (size := int(self.rfile.readline(), 16)):
                data += self.rfile.read(size)
                self.rfile.readline()
            if limit is None:
                self.rfile.readline()
            return data[:limit]
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(length, limit))

    def cut_off(self) -> None:
        """Closes the connection so that the client's next byte is refused."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method:
                if method in ("POST", "PUT") and name not in ("validate_yaml", "lfs_put"):
                    self.check_token()
                answer = getattr(self, name)(**match.groupdict())
                return answer if isinstance(answer, tuple) else (200, {}, json.dumps(answer).encode())
        raise Answer(404, f"this server does not know {self.command} {path}")

    def check_token(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == READ_TOKEN:
            raise Answer(403, "This token may only read")
        if token != TOKEN:
            raise Answer(401, "Invalid credentials in Authorization header")

    def repo(self, repo_id: str) -> Repo:
        if repo_id not in self.hub.repos:
            raise Answer(404, "Repository not found", "RepoNotFound")
        return self.hub.repos[repo_id]

    def state(self, repo_id: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        """The commit that a revision names, and its files."""
        repo = self.repo(repo_id)
        commit = repo.resolve(revision or "main")
        if commit is None:
            raise Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.commits[commit]

    # ---- Writing ----------------------------------------------------------------------------------------------------

    def whoami(self):
        return {"name": USER, "type": "user", "orgs": []}

    def create_repo(self):
        wanted = json.loads(self.content)
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            answer["error"] = "You already created this model repo"
            return 409, {}, json.dumps(answer).encode()
        self.hub.repos[repo_id] = Repo()
        return answer

    def validate_yaml(self):
        content = json.loads(self.content)["content"]
        head = re.match(r"\s*---\r?\n(.*?)\r?\n---", content, re.DOTALL)
        try:
            data = yaml.safe_load(head[1]) if head else {}
            valid = isinstance(data, dict) and isinstance(data.get("license", ""), str)
        except yaml.YAMLError:
            valid = False
        errors = [] if valid else [{"message": '"license" must be a string'}]
        return 200 if valid else 400, {}, json.dumps({"errors": errors, "warnings": []}).encode()

    def preupload(self, repo_id: str, revision: str):
        _, files = self.state(repo_id, revision)
        answers = []
        for file in json.loads(self.content)["files"]:
            path, data = file["path"], files.get(file["path"])
            mode = "lfs" if is_lfs(path) else "regular"
            oid = hashlib.sha256(data).hexdigest() if data is not None and mode == "lfs" else data and git_oid(data)
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self, repo_id: str):
        self.repo(repo_id)
        objects = []
        for item in json.loads(self.content)["objects"]:
            oid = item["oid"]
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{oid}", "header": {}},
                "verify": {"href": f"{self.hub.url}/verify/{oid}", "header": {}},
            }
            objects.append({**item, **({} if oid in self.hub.lfs else {"actions": actions})})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise Answer(400, "the content is not what its name says")
        self.hub.lfs[oid] = self.content
        return {}

    def lfs_verify(self, oid: str):
        if oid not in self.hub.lfs:
            raise Answer(404, "the object has not arrived")
        return {}

    def commit(self, repo_id: str, revision: str):
        _, before = self.state(repo_id, revision)
        files, message = dict(before), ""
        for line in self.content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Answer(400, f"{value['path']} points to an object that has not arrived")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        if message in self.hub.refused:
            raise Answer(self.hub.refused[message], "planned to fail")
        oid = self.repo(repo_id).commit(files, message)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def model_info(self, repo_id: str, revision: str | None):
        commit, files = self.state(repo_id, revision)
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "tags": [], "private": False}

    def tree(self, repo_id: str, revision: str, path: str | None):
        _, files = self.state(repo_id, revision)
        found = [name for name in sorted(files) if path is None or name.startswith(f"{path}/")]
        if path is not None and not found:
            raise Answer(404, f"{path} does not exist", "EntryNotFound")
        entries = []
        for name in found:
            data = files[name]
            entry = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
            if is_lfs(name):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": POINTER_BYTES}
            entries.append(entry)
        return entries

    def resolve(self, repo_id: str, revision: str, path: str):
        commit, files = self.state(repo_id, revision)
        if path not in files:
            raise Answer(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        data = files[path]
        etag = hashlib.sha256(data).hexdigest() if is_lfs(path) else git_oid(data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        if is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        return 200, headers, data

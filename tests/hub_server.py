"""A Hub on 127.0.0.1 that unmodified `huggingface_hub`, `transformers` and `datasets` clients can talk to.

Models and data sets, users with tokens and rights, private repositories, branches, tags, commits, small files and
large ones (LFS), ranges, and, on request, failures in the middle of a transfer. Everything is in memory.

Not covered: Xet and multi-part uploads, pull requests, discussions, collections, Spaces, gated repositories, search,
the data set viewer's own server, and every limit of the real Hub. YAML of cards is accepted unread.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: Files of these endings, and all from this size on, are kept as LFS objects.
LFS_ENDINGS = {".safetensors", ".parquet", ".bin", ".npz", ".png"}
LFS_SIZE = 10 * 2**20
#: Who a token belongs to, and whether it may write.
TOKENS = {"hf_me": ("me", True), "hf_reader": ("me", False), "hf_other": ("other", True)}


@dataclass(frozen=True)
class Blob:
    """A file, and whether it is an LFS object."""

    content: bytes
    is_lfs: bool

    @property
    def oid(self) -> str:
        """What git calls the file, or the SHA-256 of an LFS object."""
        if self.is_lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


Files = Mapping[str, Blob]


@dataclass
class Repository:
    """A repository: every revision names a commit, and every commit the files that it holds."""

    repo_id: str
    kind: str
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, message: str, branch: str = "main") -> str:
        """Adds a commit to a branch."""
        sha = hashlib.sha1(f"{self.kind} {self.repo_id} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit that a branch, tag or SHA stands for."""
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        return {path: blob.content for path, blob in self.commits[self.branches[revision]].items()}


class HubServer:
    """The server's state, and what tests may ask of it or do to it.

    Attributes:
        repositories: By kind (`"models"` or `"datasets"`) and id.
        requests: Method and path of every request, with the status of the answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        self._failures: list[tuple[str, re.Pattern[str], int | None]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Answers requests until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def environment(self, cache: Any, token: str | None = "hf_me") -> dict[str, str]:
        """The variables that lead a new process here."""
        settings = {
            "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        return settings if token is None else {**settings, "HF_TOKEN": token}

    def model(self, repo_id: str) -> Repository:
        """A model repository."""
        return self.repositories["models", repo_id]

    def add(self, kind: str, repo_id: str, files: Mapping[str, bytes], *, branch: str = "main") -> Repository:
        """Puts a repository with some files on the server, without a request."""
        repository = self.repositories.setdefault((kind, repo_id), Repository(repo_id, kind))
        if not repository.commits:
            repository.commit({}, "initial commit")
        repository.commit({name: Blob(content, _is_lfs(name, len(content))) for name, content in files.items()},
                          "Add files", branch)  # fmt: skip
        return repository

    def fail(self, method: str, path: str, status: int | None = None) -> None:
        """From now on, requests whose path matches a pattern get an error; with no status the connection breaks off
        in the middle of the body."""
        self._failures.append((method, re.compile(path), status))

    def recover(self) -> None:
        """Ends all failures."""
        self._failures.clear()

    def failure(self, method: str, path: str) -> tuple[bool, int | None]:
        """Whether a request is to fail, and how."""
        for wanted, pattern, status in self._failures:
            if wanted == method and pattern.search(path):
                return True, status
        return False, None


def _is_lfs(name: str, size: int) -> bool:
    return PurePosixPath(name).suffix in LFS_ENDINGS or size >= LFS_SIZE


class _Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {**({} if code is None else {"X-Error-Code": code}), "X-Error-Message": message}
        self.headers |= headers or {}


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        try:
            fails, status = self.hub.failure(self.command, self.path)
            if fails and status is None and self.command in ("POST", "PUT"):
                self._read(limit=1000)  # a part of the body, and no answer
                self._drop()
                return
            self._body = self._read()
            if fails and status is not None:
                raise _Refused(status, None, "The server was told to fail")
            with self.hub.lock:
                self._user, self._may_write = self._authenticate()
                content, headers, status_code = self._route()
        except _Refused as refusal:
            content, headers, status_code = b"", refusal.headers, refusal.status
        self.hub.requests.append((self.command, self.path, status_code))
        self.send_response(status_code)
        for name, value in {**headers, "Content-Length": headers.get("Content-Length", str(len(content)))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if fails and status is None:
                self.wfile.write(content[: len(content) // 2])
                self._drop()
                return
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _drop(self) -> None:
        self.hub.requests.append((self.command, self.path, 0))
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: `HubServer.requests` is the log."""

    def _read(self, limit: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if limit is None else min(length, limit))

    def _authenticate(self) -> tuple[str | None, bool]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None, False
        if token not in TOKENS:
            raise _Refused(401, None, "Invalid credentials in Authorization header")
        return TOKENS[token]

    # -------- what there is

    def _route(self) -> tuple[bytes, dict[str, str], int]:
        url = urlsplit(self.path)
        self._query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]  # a quoted revision may hold slashes
        match (self.command, *parts):
            case ("GET", "api", "whoami-v2"):
                return self._whoami()
            case ("POST", "api", "validate-yaml"):
                return _json({"errors": [], "warnings": []})
            case ("POST", "api", "repos", "create"):
                return self._create()
            case ("DELETE", "api", "repos", "delete"):
                return self._delete()
            case (_, "api", ("models" | "datasets") as kind, namespace, name, *rest):
                return self._repository_call(kind, f"{namespace}/{name}", rest)
            case ("PUT", "lfs", oid):
                self.hub.objects[oid] = self._body
                return _json({})
            case ("POST", "datasets", namespace, name, "info", "lfs", "objects", "batch"):
                return self._lfs_batch("datasets", f"{namespace}/{name.removesuffix('.git')}")
            case ("POST", namespace, name, "info", "lfs", "objects", "batch"):
                return self._lfs_batch("models", f"{namespace}/{name.removesuffix('.git')}")
            case ("GET" | "HEAD", "datasets", namespace, name, "resolve", revision, *path):
                return self._resolve("datasets", f"{namespace}/{name}", revision, "/".join(path))
            case ("GET" | "HEAD", namespace, name, "resolve", revision, *path):
                return self._resolve("models", f"{namespace}/{name}", revision, "/".join(path))
            case ("GET" | "HEAD", ""):
                return b"", {}, 200
        raise _Refused(404, None, f"This Hub has no {self.command} {url.path}")

    def _whoami(self) -> tuple[bytes, dict[str, str], int]:
        if self._user is None:
            raise _Refused(401, None, "Invalid username or password.")
        role = "write" if self._may_write else "read"
        return _json({"type": "user", "name": self._user, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def _create(self) -> tuple[bytes, dict[str, str], int]:
        wish = json.loads(self._body)
        kind = wish.get("type", "model") + "s"
        repo_id = f"{wish.get('organization') or self._user}/{wish['name']}"
        self._require_rights(repo_id)
        answer = {"url": f"{self.hub.endpoint}/{'' if kind == 'models' else 'datasets/'}{repo_id}", "name": repo_id}
        if (kind, repo_id) in self.hub.repositories:
            return _json({**answer, "error": "You already created this repo"}, 409)
        repository = self.hub.add(kind, repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        repository.private = bool(wish.get("private") or wish.get("visibility") == "private")
        return _json(answer)

    def _delete(self) -> tuple[bytes, dict[str, str], int]:
        wish = json.loads(self._body)
        kind, repo_id = wish.get("type", "model") + "s", f"{wish.get('organization') or self._user}/{wish['name']}"
        self._require_rights(repo_id)
        self._find(kind, repo_id)
        del self.hub.repositories[kind, repo_id]
        return _json({})

    def _require_rights(self, repo_id: str) -> None:
        if self._user is None:
            raise _Refused(401, None, "Invalid username or password.")
        if not self._may_write or repo_id.split("/")[0] != self._user:
            raise _Refused(403, None, f"You don't have the rights to write to {repo_id}")

    def _find(self, kind: str, repo_id: str) -> Repository:
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and self._user != repo_id.split("/")[0]):
            # Whoever is not known is not told what does not exist.
            raise _Refused(401 if self._user is None else 404, "RepoNotFound", "Repository not found")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.find(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    # -------- one repository

    def _repository_call(self, kind: str, repo_id: str, rest: list[str]) -> tuple[bytes, dict[str, str], int]:
        repository = self._find(kind, repo_id)
        match (self.command, *rest):
            case ("GET",):
                return self._info(repository, "main")
            case ("GET", "revision", revision):
                return self._info(repository, revision)
            case ("GET", "tree", revision, *path):
                return self._tree(repository, revision, "/".join(path))
            case ("POST", "paths-info", revision):
                return self._paths_info(repository, revision)
            case ("GET", "refs"):
                return self._refs(repository)
        self._require_rights(repo_id)
        match (self.command, *rest):
            case ("POST", "preupload", revision):
                return self._preupload(repository, revision)
            case ("POST", "commit", revision):
                return self._commit(repository, revision)
            case ("POST", "branch", name):
                start = json.loads(self._body or b"{}").get("startingPoint", "main")
                if name in repository.branches:
                    raise _Refused(409, None, f"Reference already exists: {name}")
                repository.branches[name] = self._commit_of(repository, start)
                return _json({})
            case ("POST", "tag", revision):
                repository.tags[json.loads(self._body)["tag"]] = self._commit_of(repository, revision)
                return _json({})
            case ("DELETE", ("branch" | "tag") as kind_of_reference, name):
                getattr(repository, "branches" if kind_of_reference == "branch" else "tags").pop(name, None)
                return _json({})
        raise _Refused(404, None, f"This Hub has no {self.command} {self.path}")

    def _info(self, repository: Repository, revision: str) -> tuple[bytes, dict[str, str], int]:
        sha = self._commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        return _json(
            {"id": repository.repo_id, "sha": sha, "siblings": siblings, "private": repository.private, "tags": []}
        )

    def _tree(self, repository: Repository, revision: str, folder: str) -> tuple[bytes, dict[str, str], int]:
        files = repository.commits[self._commit_of(repository, revision)]
        inside = {path: blob for path, blob in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise _Refused(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        entries += [_entry(path, blob) for path, blob in sorted(inside.items())]
        if self._query.get("recursive", "").lower() != "true":
            depth = len(PurePosixPath(folder).parts)
            entries = [entry for entry in entries if len(PurePosixPath(entry["path"]).parts) == depth + 1]
        return _json(entries)

    def _paths_info(self, repository: Repository, revision: str) -> tuple[bytes, dict[str, str], int]:
        files = repository.commits[self._commit_of(repository, revision)]
        is_json = "json" in self.headers.get("Content-Type", "")
        wish = json.loads(self._body) if is_json else parse_qs(self._body.decode())
        entries = []
        for path in [wish["paths"]] if isinstance(wish["paths"], str) else wish["paths"]:
            if path in files:
                entries.append(_entry(path, files[path]))
            elif any(other.startswith(f"{path}/") for other in files):
                entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        return _json(entries)

    def _refs(self, repository: Repository) -> tuple[bytes, dict[str, str], int]:
        def listed(names: Mapping[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in names.items()]

        plain = {name: sha for name, sha in repository.branches.items() if not name.startswith("refs/")}
        converts = [
            {"name": name.removeprefix("refs/convert/"), "ref": name, "targetCommit": sha}
            for name, sha in repository.branches.items()
            if name.startswith("refs/convert/")
        ]
        return _json(
            {
                "branches": listed(plain, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/"),
                "converts": converts, "pullRequests": [],
            }
        )  # fmt: skip

    def _preupload(self, repository: Repository, revision: str) -> tuple[bytes, dict[str, str], int]:
        files = repository.commits[self._commit_of(repository, revision)]
        answers = []
        for wish in json.loads(self._body)["files"]:
            mode = "lfs" if _is_lfs(wish["path"], wish["size"]) else "regular"
            known = files.get(wish["path"])
            answers.append(
                {
                    "path": wish["path"], "uploadMode": mode, "shouldIgnore": False,
                    "oid": None if known is None else known.oid,
                }
            )  # fmt: skip
        return _json({"files": answers})

    def _lfs_batch(self, kind: str, repo_id: str) -> tuple[bytes, dict[str, str], int]:
        self._find(kind, repo_id)
        self._require_rights(repo_id)
        objects = []
        for wish in json.loads(self._body)["objects"]:
            answer = {"oid": wish["oid"], "size": wish["size"]}
            if wish["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wish['oid']}"}}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _commit(self, repository: Repository, branch: str) -> tuple[bytes, dict[str, str], int]:
        files = dict(repository.commits[self._commit_of(repository, branch)])
        message = ""
        for line in map(json.loads, self._body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise _Refused(400, None, f"LFS object {value['oid']} was not uploaded")
                    files[value["path"]] = Blob(self.hub.objects[value["oid"]], is_lfs=True)
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
        sha = repository.commit(files, message, branch)
        page = f"{self.hub.endpoint}/{'' if repository.kind == 'models' else 'datasets/'}{repository.repo_id}"
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{page}/commit/{sha}"})

    def _resolve(self, kind: str, repo_id: str, revision: str, path: str) -> tuple[bytes, dict[str, str], int]:
        repository = self._find(kind, repo_id)
        sha = self._commit_of(repository, revision)
        blob = repository.commits[sha].get(path)
        if blob is None:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": sha})
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        content, size = blob.content, len(blob.content)
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or size - 1)
            if first >= size:
                raise _Refused(416, None, "Range not satisfiable", {"Content-Range": f"bytes */{size}"})
            content = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
            return content, headers, 206
        return content, headers, 200


def _entry(path: str, blob: Blob) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}
    return entry


def _json(content: Any, status: int = 200) -> tuple[bytes, dict[str, str], int]:
    return json.dumps(content).encode(), {"Content-Type": "application/json"}, status

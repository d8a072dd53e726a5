# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A Hub in memory: an HTTP server with the endpoints that pushing, tagging and loading use.

    with HubServer() as hub: os.environ["HF_ENDPOINT"] = hub.url

Large files go through LFS to a second port, as on the real Hub: the client must not send its token there. Nothing is
on disk and nothing is authenticated beyond the two tokens.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


WRITER, READER = "hf_writer", "hf_reader"
LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".png")


class HubError(Exception):
    """An answer other than 200: status, the client's name of the error, and a message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class File:
    """A file of a commit; the bytes of large ones are in the object store, by their SHA-256."""

    oid: str
    size: int
    content: bytes | None


@dataclass
class Repo:
    """Commits by id, in order; branches and tags point to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], title: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits[oid], self.titles[oid], self.branches[branch] = files, title, oid
        return oid

    def resolve(self, revision: str) -> str:
        for refs in (self.branches, self.tags):
            if revision in refs:
                return refs[revision]
        if revision in self.commits:
            return revision
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class HubServer:
    """`repos` and `objects` can be looked at; `requests` lists "METHOD /path"; `broken` fails what it matches.

    Attributes:
        broken (`str` or `None`): regular expression; a request "METHOD /path" that matches has its connection cut.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken: str | None = None
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(self._hub)) for _ in range(1)]
        self._servers.append(ThreadingHTTPServer(("127.0.0.1", 0), self._handler(self._store)))
        hub, store = (server.server_port for server in self._servers)
        self.url, self.store = f"http://127.0.0.1:{hub}", f"http://localhost:{store}"  # another host, as on the Hub

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _handler(hub, answer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = f"{self.command} {unquote(urlsplit(self.path).path)}"
                hub.requests.append(request)
                if hub.broken and re.search(hub.broken, request):
                    self.close_connection = True
                    return
                try:
                    status, headers, content = answer(self.command, self.path, self.headers, body)
                except HubError as error:
                    headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
                    headers |= getattr(error, "headers", {})
                    status, content = error.status, json.dumps({"error": error.message}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(content), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

            def log_message(self, *_):
                pass

        return Handler

    def _store(self, method, path, headers, body):
        assert "Authorization" not in headers, "the token must not leave the Hub"
        oid = path.rsplit("/", 1)[1]
        if method == "PUT":
            self.objects[oid] = body
            return 200, {}, b""
        return 200, {"Content-Type": "application/octet-stream"}, self.objects[oid]

    # ---- the Hub's own endpoints ------------------------------------------------------------------------------------

    def _hub(self, method, path, headers, body):
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        url = urlsplit(path)
        # Revisions are one quoted segment; the rest of the path is a file's.
        segments = [unquote(part) for part in url.path.strip("/").split("/")]
        kind = "dataset" if "datasets" in segments[:2] else "model"
        segments = [part for index, part in enumerate(segments) if not (index < 2 and part in ("datasets", "models"))]
        is_json = headers.get("Content-Type", "").startswith(("application/json", "application/vnd.git-lfs"))
        data = json.loads(body) if body and is_json else body
        if segments[0] != "api":
            return self._files(method, segments, token, data, kind)
        if segments[1:] == ["whoami-v2"]:
            if not token:
                raise HubError(401, "", "Invalid username or password.")
            role = "write" if token == WRITER else "read"
            auth = {"type": "access_token", "accessToken": {"role": role}}
            return self._json({"type": "user", "name": "user", "orgs": [], "auth": auth})
        if segments[1:] == ["validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if segments[1:] == ["repos", "create"]:
            return self._create(data, token)
        repo_id, rest = "/".join(segments[1:3]), segments[3:]
        repo = self._repo(repo_id, token, kind, write=method in ("POST", "DELETE") and rest[0] != "paths-info")
        if method == "GET":
            return self._json(self._read(repo, repo_id, rest))
        if rest[0] == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return self._json([entry for entry in self._tree(repo, rest[1]) if entry["path"] in wanted])
        return self._json(self._write(method, repo, repo_id, rest, data))

    @staticmethod
    def _json(value):
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _create(self, data, token):
        if token != WRITER:
            status = 403 if token else 401
            raise HubError(status, "", "You don't have the rights to create a model under this namespace")
        name = f"{data.get('organization') or 'user'}/{data['name']}"
        key = f"datasets/{name}" if data.get("type") == "dataset" else name
        answer = json.dumps({"url": f"{self.url}/{key}"}).encode()
        if key in self.repos:
            return 409, {"Content-Type": "application/json"}, answer
        self.repos[key] = repo = Repo(private=data.get("visibility") == "private")
        repo.commit("main", {}, "initial commit")
        return 200, {"Content-Type": "application/json"}, answer

    def _repo(self, repo_id, token, kind="model", write=False) -> Repo:
        repo = self.repos.get(f"datasets/{repo_id}" if kind == "dataset" else repo_id)
        if repo is None or (repo.private and not token):
            raise HubError(404 if token else 401, "RepoNotFound", "Repository not found")
        if write and token != WRITER:
            raise HubError(403, "", "Forbidden: pass a token with write access")
        return repo

    def _read(self, repo, repo_id, rest):
        if rest[:1] == ["tree"]:
            entries = self._tree(repo, rest[1])
            folder = "/".join(rest[2:])
            if folder and not any(entry["path"].startswith(folder + "/") for entry in entries):
                raise HubError(404, "EntryNotFound", f"{folder} does not exist")
            return [entry for entry in entries if entry["path"].startswith(folder)]
        if rest[:1] == ["refs"]:
            refs = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
            found = {
                name: [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": oid} for key, oid in values.items()]
                for name, (kind, values) in refs.items()
            }
            return {**found, "converts": [], "pullRequests": []}
        oid = repo.resolve(rest[1] if rest[:1] == ["revision"] else "main")
        siblings = [{"rfilename": name} for name in repo.commits[oid]]
        info = {"id": repo_id, "sha": oid, "private": repo.private, "gated": repo.gated, "siblings": siblings}
        return {**info, "tags": [], "cardData": self._card_data(repo.commits[oid].get("README.md"))}

    @staticmethod
    def _card_data(readme: File | None) -> dict:
        licence = re.search(r"^license: (.+)$", readme.content.decode(), re.M) if readme else None
        return {"license": licence[1]} if licence else {}

    @staticmethod
    def _tree(repo, revision):
        entries = []
        for path, file in sorted(repo.commits[repo.resolve(revision)].items()):
            entry = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            if file.content is None:
                entry["lfs"] = {"oid": file.oid, "size": file.size, "pointerSize": 134}
            entries.append(entry)
        return entries

    def _write(self, method, repo, repo_id, rest, data):
        action, revision = rest[0], rest[1]
        if action == "preupload":
            files = repo.commits[repo.resolve(revision)]
            return {"files": [self._upload_mode(entry, files) for entry in data["files"]]}
        if action == "commit":
            return self._commit(repo, repo_id, revision, data)
        refs, name = (repo.tags, data["tag"]) if action == "tag" and method == "POST" else (None, revision)
        if refs is None:
            refs = repo.tags if action == "tag" else repo.branches
        if method == "DELETE":
            del refs[name]
        elif name in refs:
            raise HubError(409, "", f"Reference {name} already exists")
        else:
            start = revision if action == "tag" else data.get("startingPoint", "main")
            refs[name] = repo.resolve(start)
        return {}

    @staticmethod
    def _upload_mode(entry, files):
        mode = "lfs" if entry["path"].endswith(LFS_SUFFIXES) else "regular"
        old = files.get(entry["path"])
        return {
            "path": entry["path"],
            "uploadMode": mode,
            "shouldIgnore": False,
            "oid": None if old is None else old.oid,
        }

    def _commit(self, repo, repo_id, branch, data):
        if branch not in repo.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files, title = dict(repo.commits[repo.branches[branch]]), ""
        for line in map(json.loads, data.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repo.branches[branch]):
                    raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                content = base64.b64decode(value["content"])
                oid = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
                files[value["path"]] = File(oid, len(content), content)
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise HubError(400, "", "Your push was rejected because an LFS pointer points to nothing")
                files[value["path"]] = File(value["oid"], value["size"], None)
            elif key == "deletedFile":
                files.pop(value["path"], None)
        oid = repo.commit(branch, files, title)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo_id}/commit/{oid}", "hookOutput": ""}

    def _files(self, method, segments, token, data, kind):
        repo_id, rest = "/".join(segments[:2]), segments[2:]
        if rest[:2] == ["info", "lfs"]:
            self._repo(repo_id.removesuffix(".git"), token, kind, write=True)
            objects = []
            for entry in data["objects"]:
                upload = {"upload": {"href": f"{self.store}/{entry['oid']}"}}
                actions = {} if entry["oid"] in self.objects else {"actions": upload}
                objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
            return self._json({"transfer": "basic", "objects": objects})
        repo = self._repo(repo_id, token, kind)  # .../resolve/REVISION/PATH
        if repo.gated and token != WRITER:
            raise HubError(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted")
        commit, path = repo.resolve(rest[1]), "/".join(rest[2:])
        file = repo.commits[commit].get(path)
        if file is None:
            error = HubError(404, "EntryNotFound", f"{path} does not exist at {rest[1]}")
            error.headers = {"X-Repo-Commit": commit}  # the client remembers the absence under it
            raise error
        answer = {"X-Repo-Commit": commit, "ETag": f'"{file.oid}"'}
        if file.content is not None:
            return 200, answer, file.content
        large = {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": file.size, "Location": f"{self.store}/{file.oid}"}
        return 302, {**answer, **large}, b""

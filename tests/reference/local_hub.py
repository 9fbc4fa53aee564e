"""Minimal in-process Hugging Face Hub for tests (Starlette + uvicorn thread, loopback only).

Speaks the subset of the Hub HTTP API that huggingface_hub 2.4 / diffusers 0.42 / datasets 5.2
use for create_repo, upload_file/folder, create_commit, push_to_hub, hf_hub_download,
snapshot_download, from_pretrained, load_dataset, ModelCard.validate/push.

storage="xet"      real hf_xet upload/download against its built-in `local://` CAS
storage="lfs"      classic LFS batch + PUT (client must set HF_HUB_DISABLE_XET=1 *before* import)
storage="regular"  everything is committed inline as base64 (works with either client setting)
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import re
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


LFS_EXT = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".npz",
    ".npy",
    ".parquet",
    ".arrow",
    ".zip",
    ".tar",
    ".gz",
    ".7z",
    ".onnx",
    ".png",
    ".jpg",
    ".webp",
    ".gif",
    ".mp4",
)


@dataclass
class Blob:
    size: int
    sha256: str
    oid: str  # git blob sha1 (of the LFS pointer for LFS files)
    lfs: bool
    xet: str | None = None


@dataclass
class Repo:
    type: str
    id: str
    private: bool = False
    sdk: str | None = None
    commits: dict = field(default_factory=dict)  # sha -> {"files": {path: Blob}, ...}
    branches: dict = field(default_factory=dict)
    tags: dict = field(default_factory=dict)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def xet_hex(raw: bytes) -> str:
    return "".join(f"{w:016x}" for w in struct.unpack("<4Q", raw))


def xet_map(cas_dir: Path) -> dict[str, str]:
    """{sha256 hex: xet file hash hex} read out of the MDB shards in hf_xet's local CAS."""
    out = {}
    for shard in cas_dir.rglob("*.mdb"):
        b = shard.read_bytes()
        pos = 48
        while pos + 48 <= len(b):
            fh, flags, n = b[pos : pos + 32], *struct.unpack("<II", b[pos + 32 : pos + 40])
            if fh == b"\xff" * 32:
                break
            pos += 48 + 48 * n
            if flags & (1 << 31):
                pos += 48 * n
            if flags & (1 << 30):
                out[xet_hex(b[pos : pos + 32])] = xet_hex(fh)
                pos += 48
    return out


def err(status, code, msg, commit=None):
    h = {"X-Error-Code": code, "X-Error-Message": msg}
    if commit:
        h["X-Repo-Commit"] = commit
    return JSONResponse({"error": msg}, status, headers=h)


class LocalHub:
    def __init__(
        self, root, storage="xet", user="tester", token="hf_localtoken", require_token=True, lfs_min=10 << 20
    ):
        self.root = Path(root)
        self.storage = storage
        self.user = user
        self.token = token
        self.require_token = require_token
        self.lfs_min = lfs_min
        self.blobs = self.root / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.cas = self.root / "cas"
        self.cas.mkdir(exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[dict] = []
        self.lock = threading.RLock()
        self.app = Starlette(routes=self._routes())
        self.endpoint = None

    # ---------------------------------------------------------------- server thread
    def __enter__(self):
        cfg = uvicorn.Config(
            self._logged, host="127.0.0.1", port=0, log_level="error", lifespan="off", interface="asgi3"
        )
        self._srv = uvicorn.Server(cfg)
        self._thr = threading.Thread(target=self._srv.run, daemon=True)
        self._thr.start()
        t0 = time.time()
        while not self._srv.started:
            if time.time() - t0 > 20:
                raise TimeoutError("local hub did not start")
            time.sleep(0.02)
        self.endpoint = f"http://127.0.0.1:{self._srv.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *a):
        self._srv.should_exit = True
        self._thr.join(10)

    async def _logged(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        rec = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}

        async def _send(m):
            if m["type"] == "http.response.start":
                rec["status"] = m["status"]
            await send(m)

        self.log.append(rec)
        await self.app(scope, receive, _send)

    # ---------------------------------------------------------------- helpers
    def _authed(self, r: Request):
        return r.headers.get("authorization") == f"Bearer {self.token}"

    def _repo(self, r: Request, type_=None):
        t = (type_ or r.path_params.get("type", "models")).rstrip("s")
        rid = f"{r.path_params['ns']}/{r.path_params['name']}"
        repo = self.repos.get((t, rid))
        if repo is None or (repo.private and not self._authed(r)):
            return None
        return repo

    def _rev(self, repo: Repo, rev: str):
        rev = rev or "main"
        for pre in ("refs/heads/", "refs/tags/"):
            rev = rev.removeprefix(pre)
        return repo.branches.get(rev) or repo.tags.get(rev) or (rev if rev in repo.commits else None)

    def _new_commit(self, repo, branch, files, title, body=""):
        parent = repo.branches.get(branch)
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        sha = hashlib.sha1(f"{parent}{title}{time.time_ns()}{sorted(files)}".encode()).hexdigest()
        repo.commits[sha] = {"files": files, "parent": parent, "title": title, "message": body, "date": now}
        repo.branches[branch] = sha
        return sha

    def _put_blob(self, data: bytes, lfs=False) -> Blob:
        sha = hashlib.sha256(data).hexdigest()
        (self.blobs / sha).write_bytes(data)
        return Blob(len(data), sha, self._pointer_oid(sha, len(data)) if lfs else git_sha1(data), lfs)

    @staticmethod
    def _pointer_oid(sha, size):
        return git_sha1(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode())

    def _entry(self, path, b: Blob):
        e = {"type": "file", "oid": b.oid, "size": b.size, "path": path}
        if b.lfs:
            e["lfs"] = {"oid": b.sha256, "size": b.size, "pointerSize": 134}
            if b.xet:
                e["xetHash"] = b.xet
        return e

    def _materialise(self, b: Blob, path: Path):
        import hf_xet

        with self.lock:
            if path.exists():
                return
            tmp = path.with_suffix(".part")
            with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{self.cas}") as g:
                g.start_download_file(hf_xet.XetFileInfo(b.xet, b.size), str(tmp))
            tmp.replace(path)

    def _card(self, repo, sha):
        b = repo.commits[sha]["files"].get("README.md")
        if not b:
            return {}
        m = re.match(r"---\n(.*?)\n---", (self.blobs / b.sha256).read_text("utf8"), re.S)
        return (yaml.safe_load(m.group(1)) or {}) if m else {}

    # ---------------------------------------------------------------- API
    async def whoami(self, r):
        if not self._authed(r):
            return err(401, "", "Invalid username or password.")
        return JSONResponse(
            {
                "type": "user",
                "id": "0",
                "name": self.user,
                "fullname": self.user,
                "email": None,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
            }
        )

    async def create(self, r):
        if not self._authed(r):
            return err(401, "", "Invalid username or password.")
        d = await r.json()
        t = d.get("type") or "model"
        rid = f"{d.get('organization') or self.user}/{d['name']}"
        url = f"{self.endpoint}/{'' if t == 'model' else t + 's/'}{rid}"
        if (t, rid) in self.repos:
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        repo = self.repos[t, rid] = Repo(
            t, rid, d.get("visibility") == "private" or bool(d.get("private")), d.get("sdk")
        )
        files = {
            ".gitattributes": self._put_blob(
                "".join(f"*{e} filter=lfs diff=lfs merge=lfs -text\n" for e in LFS_EXT).encode()
            )
        }
        self._new_commit(repo, "main", files, "initial commit")
        return JSONResponse({"url": url, "name": rid, "id": rid})

    async def delete(self, r):
        d = await r.json()
        key = (d.get("type") or "model", f"{d.get('organization') or self.user}/{d['name']}")
        if self.repos.pop(key, None) is None:
            return err(404, "RepoNotFound", "Repository not found")
        return Response("OK")

    async def validate_yaml(self, r):
        d = await r.json()
        errors = []
        m = re.match(r"---\n(.*?)\n---", d["content"], re.S)
        try:
            meta = yaml.safe_load(m.group(1)) if m else {}
        except yaml.YAMLError as e:
            errors.append({"message": f"YAML: {e}"})
            meta = {}
        meta = meta or {}
        if "license" in meta and not isinstance(meta["license"], (str, list)):
            errors.append({"message": '"license" must be a string'})
        if "tags" in meta and not isinstance(meta["tags"], list):
            errors.append({"message": '"tags" must be an array'})
        if d.get("repoType") == "space" and not meta.get("sdk"):
            errors.append({"message": '"sdk" is required'})
        if errors:
            return JSONResponse({"errors": errors, "warnings": []}, 400)
        return JSONResponse(
            {"errors": [], "warnings": [] if meta else [{"message": "empty or missing yaml metadata in repo card"}]}
        )

    async def info(self, r):
        repo = self._repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")
        sha = self._rev(repo, r.path_params.get("rev", "main"))
        if not sha:
            return err(404, "RevisionNotFound", "Invalid rev id")
        card = self._card(repo, sha)
        return JSONResponse(
            {
                "_id": "0",
                "id": repo.id,
                "modelId": repo.id,
                "author": repo.id.split("/")[0],
                "sha": sha,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "lastModified": repo.commits[sha]["date"],
                "cardData": card,
                "tags": card.get("tags") or [],
                "library_name": card.get("library_name"),
                "pipeline_tag": card.get("pipeline_tag"),
                "sdk": repo.sdk,
                "siblings": [
                    {"rfilename": p, **({"size": b.size, "blobId": b.oid} if "blobs" in r.query_params else {})}
                    for p, b in sorted(repo.commits[sha]["files"].items())
                ],
            }
        )

    async def listing(self, r):
        t = r.url.path.rsplit("/", 1)[1].rstrip("s")
        a = r.query_params.get("author")
        return JSONResponse(
            [
                {"id": k[1], "modelId": k[1], "private": v.private, "tags": []}
                for k, v in self.repos.items()
                if k[0] == t and (not a or k[1].startswith(a + "/"))
            ]
        )

    async def tree(self, r):
        repo = self._repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")
        sha = self._rev(repo, r.path_params["rev"])
        if not sha:
            return err(404, "RevisionNotFound", "Invalid rev id")
        base = r.path_params.get("path", "").strip("/")
        pre = base + "/" if base else ""
        rec = r.query_params.get("recursive", "").lower() in ("true", "1")
        out, dirs = [], set()
        for p, b in sorted(repo.commits[sha]["files"].items()):
            if not p.startswith(pre):
                continue
            parts = p[len(pre) :].split("/")
            for i in range(1, len(parts)):
                if rec or i == 1:
                    dirs.add(pre + "/".join(parts[:i]))
            if rec or len(parts) == 1:
                out.append(self._entry(p, b))
        if base and not out and not dirs:
            return err(404, "EntryNotFound", f"{base} does not exist", sha)
        return JSONResponse(
            [{"type": "directory", "oid": git_sha1(d.encode()), "size": 0, "path": d} for d in sorted(dirs)] + out
        )

    async def paths_info(self, r):
        repo = self._repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")
        sha = self._rev(repo, r.path_params["rev"])
        if not sha:
            return err(404, "RevisionNotFound", "Invalid rev id")
        if "json" in r.headers.get("content-type", ""):
            paths = (await r.json())["paths"]
        else:
            paths = (await r.form()).getlist("paths")
        files = repo.commits[sha]["files"]
        out = []
        for p in paths:
            if p in files:
                out.append(self._entry(p, files[p]))
            elif any(f.startswith(p + "/") for f in files):
                out.append({"type": "directory", "oid": git_sha1(p.encode()), "size": 0, "path": p})
        return JSONResponse(out)

    async def refs(self, r):
        repo = self._repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")

        def f(k, d):
            return [{"name": n, "ref": f"refs/{k}/{n}", "targetCommit": s} for n, s in d.items()]

        return JSONResponse(
            {"branches": f("heads", repo.branches), "tags": f("tags", repo.tags), "converts": [], "pullRequests": []}
        )

    async def commits(self, r):
        repo = self._repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")
        sha, out = self._rev(repo, r.path_params["rev"]), []
        while sha:
            c = repo.commits[sha]
            out.append(
                {
                    "id": sha,
                    "title": c["title"],
                    "message": c["message"],
                    "date": c["date"],
                    "authors": [{"user": self.user}],
                }
            )
            sha = c["parent"]
        return JSONResponse(out)

    async def make_ref(self, r):
        repo = self._repo(r)
        d = json.loads(await r.body() or b"{}")
        if r.path_params["kind"] == "tag":
            if d["tag"] in repo.tags:
                return err(409, "", "Tag already exists")
            repo.tags[d["tag"]] = self._rev(repo, r.path_params["rev"])
        else:
            if r.path_params["rev"] in repo.branches:
                return err(409, "", "Reference already exists")
            repo.branches[r.path_params["rev"]] = self._rev(repo, d.get("startingPoint") or "main")
        return JSONResponse({})

    async def preupload(self, r):
        if not self._authed(r):
            return err(401, "", "Invalid username or password.")
        repo = self._repo(r)
        if not repo:
            return err(404, "RepoNotFound", "Repository not found")
        sha = self._rev(repo, r.path_params["rev"])
        d = await r.json()
        out = []
        if not sha:
            return err(404, "RevisionNotFound", "Invalid rev id")
        for f in d["files"]:
            lfs = self.storage != "regular" and (f["path"].endswith(LFS_EXT) or f["size"] > self.lfs_min)
            old = repo.commits[sha]["files"].get(f["path"])
            out.append(
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    "oid": (old.sha256 if old.lfs else old.oid) if old else None,
                }
            )
        return JSONResponse({"files": out})

    async def xet_token(self, r):
        if r.path_params["mode"] == "write" and not self._authed(r):
            return err(401, "", "Invalid username or password.")
        exp = int(time.time()) + 3600
        cas = f"local://{self.cas}"
        return JSONResponse(
            {"casUrl": cas, "accessToken": "xet-local", "exp": exp},
            headers={"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "xet-local", "X-Xet-Token-Expiration": str(exp)},
        )

    async def lfs_batch(self, r):
        if not self._authed(r):
            return err(401, "", "Invalid username or password.")
        d = await r.json()
        objs = []
        for o in d["objects"]:
            e = {"oid": o["oid"], "size": o["size"]}
            if not (self.blobs / o["oid"]).exists():
                e["actions"] = {
                    "upload": {"href": f"{self.endpoint}/_lfs/{o['oid']}", "header": {}},
                    "verify": {"href": f"{self.endpoint}/_lfs/{o['oid']}/verify", "header": {}},
                }
            objs.append(e)
        return JSONResponse({"transfer": "basic", "objects": objs}, media_type="application/vnd.git-lfs+json")

    async def lfs_put(self, r):
        data = await r.body()
        oid = r.path_params["oid"]
        if hashlib.sha256(data).hexdigest() != oid:
            return err(400, "", "sha256 mismatch")
        (self.blobs / oid).write_bytes(data)
        return Response(headers={"ETag": oid})

    async def lfs_verify(self, r):
        ok = (self.blobs / r.path_params["oid"]).exists()
        return JSONResponse({}, 200 if ok else 404)

    async def commit(self, r):
        if not self._authed(r):
            return err(401, "", "Invalid username or password.")
        repo = self._repo(r)
        if not repo:
            return err(404, "RepoNotFound", "Repository not found")
        lines = [json.loads(line) for line in (await r.body()).splitlines() if line.strip()]
        with self.lock:
            branch = r.path_params["rev"].removeprefix("refs/heads/")
            sha = repo.branches.get(branch)
            if not sha:
                return err(404, "RevisionNotFound", "Invalid rev id")
            files, head = dict(repo.commits[sha]["files"]), {}
            for line in lines:
                k, v = line["key"], line["value"]
                if k == "header":
                    head = v
                    if v.get("parentCommit") not in (None, sha):
                        return err(412, "", "A commit has happened since. Please refresh and try again.")
                elif k == "file":
                    files[v["path"]] = self._put_blob(base64.b64decode(v["content"]))
                elif k == "lfsFile":
                    b = Blob(v.get("size", 0), v["oid"], "", True)
                    if self.storage == "xet":
                        b.xet = xet_map(self.cas).get(v["oid"])
                        if not b.xet:
                            return err(400, "", f"xet object for {v['path']} was not uploaded")
                    elif not (self.blobs / v["oid"]).exists():
                        return err(400, "", f"LFS pointer pointed to a file that does not exist: {v['path']}")
                    b.size = b.size or (self.blobs / v["oid"]).stat().st_size
                    b.oid = self._pointer_oid(b.sha256, b.size)
                    files[v["path"]] = b
                elif k == "deletedFile":
                    files.pop(v["path"], None)
                elif k == "deletedFolder":
                    for p in [p for p in files if p.startswith(v["path"].rstrip("/") + "/")]:
                        files.pop(p)
            new = self._new_commit(repo, branch, files, head.get("summary", ""), head.get("description", ""))
        t = "" if repo.type == "model" else repo.type + "s/"
        return JSONResponse(
            {
                "success": True,
                "commitOid": new,
                "commitUrl": f"{self.endpoint}/{t}{repo.id}/commit/{new}",
                "hookOutput": "",
            }
        )

    def _resolve(self, type_):
        async def resolve(r):
            repo = self._repo(r, type_)
            if not repo:
                return err(401, "RepoNotFound", "Repository not found")
            sha = self._rev(repo, r.path_params["rev"])
            if not sha:
                return err(404, "RevisionNotFound", "Invalid rev id")
            b = repo.commits[sha]["files"].get(r.path_params["path"])
            if not b:
                return err(404, "EntryNotFound", "Entry not found", sha)
            h = {
                "X-Repo-Commit": sha,
                "ETag": f'"{b.sha256 if b.lfs else b.oid}"',
                "Accept-Ranges": "bytes",
                "Access-Control-Expose-Headers": "*",
            }
            if b.lfs:
                h.update({"X-Linked-Size": str(b.size), "X-Linked-Etag": f'"{b.sha256}"'})
            if b.xet:
                h["X-Xet-Hash"] = b.xet
                h["Link"] = f'<{self.endpoint}/api/{type_}s/{repo.id}/xet-read-token/{sha}>; rel="xet-auth"'
            p = self.blobs / b.sha256
            if r.method == "HEAD":
                return Response(headers={**h, "Content-Length": str(b.size)})
            if not p.exists():
                await run_in_threadpool(self._materialise, b, p)  # plain GET of a xet file (streaming, browsers)
            return FileResponse(p, headers=h, media_type="application/octet-stream")  # handles Range

        return resolve

    async def harnesses(self, r):
        return JSONResponse({"standardEnvVars": [], "harnesses": {}})

    async def health(self, r):
        return PlainTextResponse("ok")

    def _routes(self):
        R = "/api/{type:str}/{ns}/{name}"
        rt = [
            Route("/health", self.health),
            Route("/api/whoami-v2", self.whoami),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/repos/delete", self.delete, methods=["DELETE"]),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route(R + "/revision/{rev:path}", self.info),
            Route(R + "/tree/{rev}/{path:path}", self.tree),
            Route(R + "/tree/{rev}", self.tree),
            Route(R + "/paths-info/{rev}", self.paths_info, methods=["POST"]),
            Route(R + "/refs", self.refs),
            Route(R + "/commits/{rev}", self.commits),
            Route(R + "/{kind:str}/{rev}", self.make_ref, methods=["POST"]),
            Route(R + "/xet-{mode}-token/{rev}", self.xet_token),
            Route(R, self.info),
            *[Route(f"/api/{t}", self.listing) for t in ("models", "datasets", "spaces")],
            Route("/api/agent-harnesses", self.harnesses),
            Route("/_lfs/{oid}", self.lfs_put, methods=["PUT"]),
            Route("/_lfs/{oid}/verify", self.lfs_verify, methods=["POST"]),
        ]
        rt.insert(5, Route(R + "/preupload/{rev}", self.preupload, methods=["POST"]))
        rt.insert(5, Route(R + "/commit/{rev}", self.commit, methods=["POST"]))
        for t, pre in (("dataset", "/datasets"), ("space", "/spaces"), ("model", "")):
            rt += [
                Route(pre + "/{ns}/{name}.git/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]),
                Route(pre + "/{ns}/{name}/resolve/{rev}/{path:path}", self._resolve(t), methods=["GET", "HEAD"]),
            ]
        return rt


if __name__ == "__main__":
    import argparse

    a = argparse.ArgumentParser()
    a.add_argument("--root", default="local_hub_data")
    a.add_argument("--storage", default="xet")
    a.add_argument("--port", type=int, default=8900)
    o = a.parse_args()
    hub = LocalHub(o.root, o.storage)
    hub.endpoint = f"http://127.0.0.1:{o.port}"
    uvicorn.run(hub._logged, host="127.0.0.1", port=o.port, lifespan="off", interface="asgi3", log_level="info")

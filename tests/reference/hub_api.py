"""The Hub's API of accounts, repositories and commits."""

import base64
import json
import re

import yaml
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.reference.hub_store import LFS_EXT, Blob, Repo, Store, err, git_sha1, xet_map


class Api:
    def __init__(self, hub: Store):
        self.hub = hub

    def routes(self):
        R = "/api/{type:str}/{ns}/{name}"
        return [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route(R + "/revision/{rev:path}", self.info),
            Route(R + "/tree/{rev}/{path:path}", self.tree),
            Route(R + "/commit/{rev}", self.commit, methods=["POST"]),
            Route(R + "/preupload/{rev}", self.preupload, methods=["POST"]),
            Route(R + "/tree/{rev}", self.tree),
            Route(R + "/branch/{rev}", self.make_branch, methods=["POST"]),
            Route(R, self.info),
            Route("/api/agent-harnesses", self.harnesses),
        ]

    async def whoami(self, r):
        if not self.hub.authed(r):
            return err(401, "", "Invalid username or password.")
        return JSONResponse(
            {
                "type": "user",
                "id": "0",
                "name": self.hub.user,
                "fullname": self.hub.user,
                "email": None,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
            }
        )

    async def create(self, r):
        if not self.hub.authed(r):
            return err(401, "", "Invalid username or password.")
        d = await r.json()
        t = d.get("type") or "model"
        rid = f"{d.get('organization') or self.hub.user}/{d['name']}"
        url = f"{self.hub.endpoint}/{'' if t == 'model' else t + 's/'}{rid}"
        if (t, rid) in self.hub.repos:
            return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
        repo = self.hub.repos[t, rid] = Repo(
            t, rid, d.get("visibility") == "private" or bool(d.get("private")), d.get("sdk")
        )
        files = {
            ".gitattributes": self.hub.put_blob(
                "".join(f"*{e} filter=lfs diff=lfs merge=lfs -text\n" for e in LFS_EXT).encode()
            )
        }
        self.hub.new_commit(repo, "main", files, "initial commit")
        return JSONResponse({"url": url, "name": rid, "id": rid})

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
        repo = self.hub.repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")
        sha = self.hub.rev(repo, r.path_params.get("rev", "main"))
        if not sha:
            return err(404, "RevisionNotFound", "Invalid rev id")
        card = self.hub.card(repo, sha)
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

    async def tree(self, r):
        repo = self.hub.repo(r)
        if not repo:
            return err(401, "RepoNotFound", "Repository not found")
        sha = self.hub.rev(repo, r.path_params["rev"])
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
                out.append(self.hub.entry(p, b))
        if base and not out and not dirs:
            return err(404, "EntryNotFound", f"{base} does not exist", sha)
        return JSONResponse(
            [{"type": "directory", "oid": git_sha1(d.encode()), "size": 0, "path": d} for d in sorted(dirs)] + out
        )

    async def make_branch(self, r):
        repo = self.hub.repo(r)
        start = json.loads(await r.body() or b"{}").get("startingPoint")
        if r.path_params["rev"] in repo.branches:
            return err(409, "", "Reference already exists")
        repo.branches[r.path_params["rev"]] = self.hub.rev(repo, start)
        return JSONResponse({})

    async def preupload(self, r):
        if not self.hub.authed(r):
            return err(401, "", "Invalid username or password.")
        repo = self.hub.repo(r)
        if not repo:
            return err(404, "RepoNotFound", "Repository not found")
        sha = self.hub.rev(repo, r.path_params["rev"])
        d = await r.json()
        out = []
        if not sha:
            return err(404, "RevisionNotFound", "Invalid rev id")
        for f in d["files"]:
            lfs = self.hub.storage != "regular" and (f["path"].endswith(LFS_EXT) or f["size"] > 10 << 20)
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

    async def commit(self, r):
        if not self.hub.authed(r):
            return err(401, "", "Invalid username or password.")
        repo = self.hub.repo(r)
        if not repo:
            return err(404, "RepoNotFound", "Repository not found")
        lines = [json.loads(line) for line in (await r.body()).splitlines() if line.strip()]
        with self.hub.lock:
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
                    files[v["path"]] = self.hub.put_blob(base64.b64decode(v["content"]))
                elif k == "lfsFile":
                    b = Blob(v.get("size", 0), v["oid"], "", True)
                    if self.hub.storage == "xet":
                        b.xet = xet_map(self.hub.cas).get(v["oid"])
                        if not b.xet:
                            return err(400, "", f"xet object for {v['path']} was not uploaded")
                    elif not (self.hub.blobs / v["oid"]).exists():
                        return err(400, "", f"LFS pointer pointed to a file that does not exist: {v['path']}")
                    b.size = b.size or (self.hub.blobs / v["oid"]).stat().st_size
                    b.oid = self.hub.pointer_oid(b.sha256, b.size)
                    files[v["path"]] = b
                elif k == "deletedFile":
                    files.pop(v["path"], None)
                elif k == "deletedFolder":
                    for p in [p for p in files if p.startswith(v["path"].rstrip("/") + "/")]:
                        files.pop(p)
            new = self.hub.new_commit(repo, branch, files, head.get("summary", ""), head.get("description", ""))
        t = "" if repo.type == "model" else repo.type + "s/"
        return JSONResponse(
            {
                "success": True,
                "commitOid": new,
                "commitUrl": f"{self.hub.endpoint}/{t}{repo.id}/commit/{new}",
                "hookOutput": "",
            }
        )

    async def harnesses(self, r):
        return JSONResponse({"standardEnvVars": [], "harnesses": {}})

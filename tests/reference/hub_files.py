"""How files come to the Hub and from it: downloads, LFS, and the tokens of xet."""

import hashlib
import time

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tests.reference.hub_store import Store, err


class Files:
    def __init__(self, hub: Store):
        self.hub = hub

    def routes(self):
        routes = [
            Route("/api/{type:str}/{ns}/{name}/xet-{mode}-token/{rev}", self.xet_token),
            Route("/_lfs/{oid}", self.lfs_put, methods=["PUT"]),
            Route("/_lfs/{oid}/verify", self.lfs_verify, methods=["POST"]),
        ]
        for kind, prefix in (("dataset", "/datasets"), ("space", "/spaces"), ("model", "")):
            repo = prefix + "/{ns}/{name}"
            routes += [
                Route(repo + ".git/info/lfs/objects/batch", self.lfs_batch, methods=["POST"]),
                Route(repo + "/resolve/{rev}/{path:path}", self.resolve_of(kind), methods=["GET", "HEAD"]),
            ]
        return routes

    async def xet_token(self, r):
        if r.path_params["mode"] == "write" and not self.hub.authed(r):
            return err(401, "", "Invalid username or password.")
        exp = int(time.time()) + 3600
        cas = f"local://{self.hub.cas}"
        return JSONResponse(
            {"casUrl": cas, "accessToken": "xet-local", "exp": exp},
            headers={"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "xet-local", "X-Xet-Token-Expiration": str(exp)},
        )

    async def lfs_batch(self, r):
        if not self.hub.authed(r):
            return err(401, "", "Invalid username or password.")
        d = await r.json()
        objs = []
        for o in d["objects"]:
            e = {"oid": o["oid"], "size": o["size"]}
            if not (self.hub.blobs / o["oid"]).exists():
                e["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/_lfs/{o['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.endpoint}/_lfs/{o['oid']}/verify", "header": {}},
                }
            objs.append(e)
        return JSONResponse({"transfer": "basic", "objects": objs}, media_type="application/vnd.git-lfs+json")

    async def lfs_put(self, r):
        data = await r.body()
        oid = r.path_params["oid"]
        if hashlib.sha256(data).hexdigest() != oid:
            return err(400, "", "sha256 mismatch")
        (self.hub.blobs / oid).write_bytes(data)
        return Response(headers={"ETag": oid})

    async def lfs_verify(self, r):
        ok = (self.hub.blobs / r.path_params["oid"]).exists()
        return JSONResponse({}, 200 if ok else 404)

    def resolve_of(self, type_):
        async def resolve(r):
            repo = self.hub.repo(r, type_)
            if not repo:
                return err(401, "RepoNotFound", "Repository not found")
            sha = self.hub.rev(repo, r.path_params["rev"])
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
                h["Link"] = f'<{self.hub.endpoint}/api/{type_}s/{repo.id}/xet-read-token/{sha}>; rel="xet-auth"'
            p = self.hub.blobs / b.sha256
            if r.method == "HEAD":
                return Response(headers={**h, "Content-Length": str(b.size)})
            if not p.exists():
                await run_in_threadpool(self.hub.materialise, b, p)  # plain GET of a xet file (streaming, browsers)
            return FileResponse(p, headers=h, media_type="application/octet-stream")  # handles Range

        return resolve

"""What a Hub keeps: repositories with their commits, and the files, in folders of the disk."""

import datetime as dt
import hashlib
import re
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse


LFS_EXT = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".parquet", ".arrow", ".zip", ".tar", ".gz", ".7z",
    ".onnx", ".png", ".jpg", ".webp", ".gif", ".mp4",
)  # fmt: skip


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


class Store:
    """
    storage="xet"      real hf_xet upload/download against its built-in `local://` CAS
    storage="lfs"      classic LFS batch + PUT (client must set HF_HUB_DISABLE_XET=1 *before* import)
    storage="regular"  everything is committed inline as base64 (works with either client setting)
    """

    def __init__(self, root, storage, user, token):
        self.storage = storage
        self.user = user
        self.token = token
        self.blobs = Path(root) / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.cas = Path(root) / "cas"
        self.cas.mkdir(exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.RLock()
        self.endpoint = None

    def authed(self, r: Request):
        return r.headers.get("authorization") == f"Bearer {self.token}"

    def repo(self, r: Request, type_=None):
        t = (type_ or r.path_params.get("type", "models")).rstrip("s")
        rid = f"{r.path_params['ns']}/{r.path_params['name']}"
        repo = self.repos.get((t, rid))
        if repo is None or (repo.private and not self.authed(r)):
            return None
        return repo

    def rev(self, repo: Repo, rev: str):
        rev = (rev or "main").removeprefix("refs/heads/")
        return repo.branches.get(rev) or (rev if rev in repo.commits else None)

    def new_commit(self, repo, branch, files, title, body=""):
        parent = repo.branches.get(branch)
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        sha = hashlib.sha1(f"{parent}{title}{time.time_ns()}{sorted(files)}".encode()).hexdigest()
        repo.commits[sha] = {"files": files, "parent": parent, "title": title, "message": body, "date": now}
        repo.branches[branch] = sha
        return sha

    def put_blob(self, data: bytes, lfs=False) -> Blob:
        sha = hashlib.sha256(data).hexdigest()
        (self.blobs / sha).write_bytes(data)
        return Blob(len(data), sha, self.pointer_oid(sha, len(data)) if lfs else git_sha1(data), lfs)

    @staticmethod
    def pointer_oid(sha, size):
        return git_sha1(f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode())

    def entry(self, path, b: Blob):
        e = {"type": "file", "oid": b.oid, "size": b.size, "path": path}
        if b.lfs:
            e["lfs"] = {"oid": b.sha256, "size": b.size, "pointerSize": 134}
            if b.xet:
                e["xetHash"] = b.xet
        return e

    def materialise(self, b: Blob, path: Path):
        import hf_xet

        with self.lock:
            if path.exists():
                return
            tmp = path.with_suffix(".part")
            with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{self.cas}") as g:
                g.start_download_file(hf_xet.XetFileInfo(b.xet, b.size), str(tmp))
            tmp.replace(path)

    def card(self, repo, sha):
        b = repo.commits[sha]["files"].get("README.md")
        if not b:
            return {}
        m = re.match(r"---\n(.*?)\n---", (self.blobs / b.sha256).read_text("utf8"), re.S)
        return (yaml.safe_load(m.group(1)) or {}) if m else {}

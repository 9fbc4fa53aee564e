"""A minimal Hugging Face Hub on this machine, in a thread of the test's process.

It speaks what huggingface_hub, diffusers and datasets ask of the Hub to create and fill repositories, to download from
them, and to check cards.
"""

import threading
import time

import uvicorn
from starlette.applications import Starlette

from tests.reference.hub_api import Api
from tests.reference.hub_files import Files
from tests.reference.hub_store import Store


class LocalHub(Store):
    """While the context lasts, a Hub at `endpoint`; `log` tells the requests."""

    def __init__(self, root, storage="xet", user="tester", token="hf_localtoken"):
        super().__init__(root, storage, user, token)
        self.log: list[dict] = []
        self.app = Starlette(routes=[*Files(self).routes(), *Api(self).routes()])

    def __enter__(self):
        cfg = uvicorn.Config(
            self._logged, host="127.0.0.1", port=0, log_level="error", lifespan="off", interface="asgi3"
        )
        self._srv = uvicorn.Server(cfg)
        self._thr = threading.Thread(target=self._srv.run, daemon=True)
        self._thr.start()
        t0 = time.time()
        while not self._srv.started:
            if time.time() - t0 > 300:
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

"""A visitor without a browser: sends what the page's scripts send, or whatever else."""

import json
import uuid

import httpx


class Visitor:
    """One session of a server.

    Args:
        url (`str`): The server's address.
        address (`str`, *optional*): Where the requests seem to come from, as a proxy on the same machine tells it.
    """

    def __init__(self, url, address=None):
        headers = {} if address is None else {"x-forwarded-for": address}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=600)
        self.session = uuid.uuid4().hex

    def config(self):
        """Gradio's description of the page; taken once."""
        if not hasattr(self, "_config"):
            self._config = self.http.get("/config").json()
            self._elements = {c["id"]: c["props"].get("elem_id") for c in self._config["components"]}
            self._values = {c["id"]: c["props"].get("value") for c in self._config["components"]}
        return self._config

    def function(self, name, public=False):
        """Gradio's description of a handler of the page, or of an endpoint."""
        wanted = "public" if public else "private"
        (found,) = [
            f for f in self.config()["dependencies"] if f["api_name"] == name and f["api_visibility"] == wanted
        ]
        return found

    def data(self, function, **changes):
        """What the page sends at first, with some values changed by `elem_id`."""
        changes = {name.replace("_", "-"): value for name, value in changes.items()}
        return [changes.get(self._elements[i] or "", self._values[i]) for i in function["inputs"]]

    def _body(self, function, data):
        return {"fn_index": function["id"], "data": data, "session_hash": self.session}

    def call(self, name, data=None, **changes):
        """The answer of a handler outside the queue: status, and the decoded JSON."""
        function = self.function(name)
        data = self.data(function, **changes) if data is None else data
        answer = self.http.post("/gradio_api/run/predict", json=self._body(function, data))
        return answer.status_code, answer.json()

    def join(self, name, data=None, public=False, **changes):
        """Asks for a job; the status of the request."""
        function = self.function(name, public)
        data = self.data(function, **changes) if data is None else data
        return self.http.post("/gradio_api/queue/join", json=self._body(function, data)).status_code

    def news(self):
        """What is told of the session's jobs, until they are done."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "close_stream":
                        return
                    yield message

    def run(self, name, data=None, public=False, **changes):
        """A job and its last output."""
        assert self.join(name, data, public, **changes) == 200
        return [message["output"] for message in self.news() if message["msg"] == "process_completed"][-1]

    def upload(self, name, content):
        """Uploads a file: the status, and its path on the server."""
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        return answer.status_code, answer.json()[0] if answer.status_code == 200 else answer.text

    def send(self, data):
        """A file of a new session's, as a profile and as a layer of the drawing.

        Returns:
            `list[str]`: What is told of it; `None` if the upload is refused.
        """
        self.session = uuid.uuid4().hex
        status, path = self.upload("profile.zip", data)
        if status != 200:
            return None
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        drawing = {"background": None, "layers": [file], "composite": None}
        answers = self.call("upload", upload=file), self.call("share", mask=drawing)
        return [str(answer.get("error") or "") for _, answer in answers]

    def page(self):
        """An open page: the connection that a browser holds as long as it shows one."""
        return self.http.stream("GET", f"/gradio_api/heartbeat/{self.session}")

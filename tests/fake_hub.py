"""A server that speaks the Hub's API as far as huggingface_hub asks for pushing and pulling, on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """`files[(kind, repo)]` is what was pushed; `asked` every request with its headers."""

    def __init__(self):
        self.files, self.asked, self.private = {}, [], {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, body=b"", code=200, **headers):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                hub.asked.append((self.path, dict(self.headers)))
                if self.path == "/api/repos/create":
                    told = json.loads(body)
                    repo = f"{told.get('organization') or 'owner'}/{told['name']}"
                    hub.private[repo] = told.get("private") or told.get("visibility") == "private"
                    return self.answer({"url": f"{hub.url}/{repo}", "id": repo, "name": repo})
                if self.path == "/api/validate-yaml":
                    return self.answer({"errors": [], "warnings": []})
                if found := re.match(r"/api/(\w+)s/([^/]+/[^/]+)/preupload/main", self.path):
                    files = [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for f in json.loads(body)["files"]
                    ]
                    return self.answer({"files": files})
                if found := re.match(r"/api/(\w+)s/([^/]+/[^/]+)/commit/main", self.path):
                    kept = hub.files.setdefault((found[1], found[2]), {})
                    for line in map(json.loads, body.decode().splitlines()):
                        if line["key"] == "file":
                            kept[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    address = f"{hub.url}/{found[2]}/commit/{'1' * 40}"
                    return self.answer({"success": True, "commitUrl": address, "commitOid": "1" * 40})
                return self.answer({"error": "no"}, 404)

            def do_GET(self):
                hub.asked.append((self.path, dict(self.headers)))
                if found := re.match(r"/api/(\w+)s/([^/]+/[^/]+)/tree/", self.path):
                    kept = hub.files.get((found[1], found[2]), {})
                    return self.answer(
                        [
                            {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                            for n, d in kept.items()
                        ]
                    )
                if found := re.match(r"/api/(\w+)s/([^/]+/[^/?]+)", self.path):
                    kept = hub.files.get((found[1], found[2]))
                    if kept is None:
                        return self.answer({"error": "no"}, 404, X_Error_Code="RepoNotFound")
                    return self.answer({"id": found[2], "sha": "1" * 40, "siblings": [{"rfilename": n} for n in kept]})
                if found := re.match(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path):
                    kind = "dataset" if found[1] else "model"
                    data = hub.files.get((kind, found[2]), {}).get(found[3])
                    if data is None:
                        return self.answer(b"", 404, X_Error_Code="EntryNotFound")
                    tag = f'"{hashlib.sha1(data).hexdigest()}"'
                    return self.answer(data, ETag=tag, X_Repo_Commit="1" * 40)
                return self.answer({"error": "no"}, 404)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

"""The writing half of the Hub's API: who asks, new repositories, pre-upload, LFS, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

Answer = tuple[int, bytes, dict[str, str]]
USER = "owner"
TOKEN = "hf_token_of_tests"
_MODEL_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class HubUploads:
    """Repositories below one folder, and the large objects that were sent."""

    def __init__(self) -> None:
        self.root: Path | None = None
        """Where repositories are made; None makes the Hub one that is only read."""
        self.role = "write"
        self.private: set[str] = set()
        self.protected: set[str] = set()
        """Repositories that this user may not write to."""
        self.objects: dict[str, bytes] = {}
        self.num_sent = 0
        """Large objects that were received."""
        self.num_commits = 0
        self.fail_commits = False

    def answer(self, hub: Any, method: str, path: str, token: str | None, body: bytes) -> Answer:
        """Answer a request, or with status 0 say that it is none of ours."""
        if method == "PUT":
            return self._put(path.rpartition("/")[2], body)
        if path.startswith("/api/whoami") and token != f"Bearer {TOKEN}":
            return 401, b"", {}
        if path == "/api/whoami-v2":
            role = {"accessToken": {"role": self.role}}
            return _json({"name": USER, "orgs": [], "auth": role})
        if found := re.fullmatch(r"/api/models/(.+)/auth-check/write", path):
            return (403 if found[1] in self.protected else 200), b"{}", {}
        if method != "POST":
            return 0, b"", {}
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._batch(hub, json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            folder = hub.repos[found[1]]
            return (
                _preupload(folder, json.loads(body))
                if found[2] == "preupload"
                else self._commit(hub, found[1], body)
            )
        table = json.loads(body)
        return self._create(hub, table) if path == "/api/repos/create" else _validate(table)

    def _create(self, hub: Any, table: dict[str, Any]) -> Answer:
        repo_id = f"{table['organization'] or USER}/{table['name']}"
        if repo_id in hub.repos:
            return 409, json.dumps({"url": f"{hub.url}/{repo_id}"}).encode(), {}
        assert self.root is not None
        folder = self.root / repo_id
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
        hub.add(repo_id, folder)
        if table.get("visibility") == "private":
            self.private.add(repo_id)
        return _json({"url": f"{hub.url}/{repo_id}"})

    def _batch(self, hub: Any, table: dict[str, Any]) -> Answer:
        rows = []
        for row in table["objects"]:
            href = f"{hub.cdn_url}/upload/{row['oid']}"
            missing = {} if row["oid"] in self.objects else {"actions": {"upload": {"href": href}}}
            rows.append({**row, **missing})
        return _json({"transfer": "basic", "objects": rows})

    def _put(self, oid: str, body: bytes) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, b"", {}
        self.objects[oid] = body
        self.num_sent += 1
        return 200, b"", {}

    def _commit(self, hub: Any, repo_id: str, body: bytes) -> Answer:
        if self.fail_commits:
            return 400, b"{}", {"X-Error-Message": "no commit today"}
        folder = hub.repos[repo_id]
        for line in body.decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                data = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                data = self.objects[value["oid"]]
            elif row["key"] == "deletedFile":
                (folder / value["path"]).unlink()
                continue
            else:
                continue
            path = folder / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.num_commits += 1
        hub.commits[repo_id] = hashlib.sha1(body).hexdigest()
        oid = hub.commits[repo_id]
        return _json({"commitUrl": f"{hub.url}/{repo_id}/commit/{oid}", "commitOid": oid})


def _preupload(folder: Path, table: dict[str, Any]) -> Answer:
    rows = []
    for row in table["files"]:
        is_lfs = row["path"].endswith(".safetensors")
        path = folder / row["path"]
        data = path.read_bytes() if path.is_file() else None
        git = b"blob %d\0" % len(data) + data if data is not None else b""
        oid = hashlib.sha256(data or b"") if is_lfs else hashlib.sha1(git)
        rows.append(
            {
                "path": row["path"],
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": False,
                "oid": oid.hexdigest() if data is not None else None,
            }
        )
    return _json({"files": rows})


def _validate(table: dict[str, Any]) -> Answer:
    """Refuse a card whose base models are no ids, as the Hub does."""
    metadata = yaml.safe_load(table["content"].split("---")[1])
    wrong = [i for i in metadata.get("base_model", []) if not _MODEL_ID.fullmatch(i)]
    errors = [{"message": f'"base_model" {i} is not a valid model id'} for i in wrong]
    return (400 if errors else 200), json.dumps({"errors": errors, "warnings": []}).encode(), {}


def _json(table: dict[str, Any]) -> Answer:
    return 200, json.dumps(table).encode(), {"Content-Type": "application/json"}

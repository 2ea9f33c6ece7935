"""The resource `bulkhead://tasks/{id}/artifacts/{name}`: what a durable task has made, as it stands now."""

from __future__ import annotations

from collections.abc import Mapping

import mcp_types as types
import orjson

from mcp_server.call import Call, Done
from mcp_server.resources.documents import notice
from mcp_server.resources.template import Contents, Template, canonical_id
from mcp_server.suggestions import artifact_names, task_ids
from rag.corpus.store import MAX_PART_CHARS
from rag.identity.scopes import Scope
from rag.tasks.results import cited_documents, find_artifact

__all__ = ["ARTIFACT"]

MAX_DATA_BYTES = 160 * 1024
"""Of all data in one read. Escaped it is three times as long at most: with the text, below the MiB of most clients."""
CUT = (
    "The artifact is longer than one read returns. The tool task_result reads its text on, with task_id, artifact and "
    "start; the A2A server's GetTask has all of it."
)


async def read_artifact(call: Call, variables: Mapping[str, str]) -> Done[Contents]:
    """Read an artifact: one content for each part, texts as text and data as JSON."""
    task_id, name = canonical_id(variables["id"]), variables["name"]
    found = await find_artifact(call.runtime.database, call.principal, task_id, name)
    uri = ARTIFACT.uri_of(id=str(task_id), name=name)
    contents: Contents = []
    characters, size = MAX_PART_CHARS, MAX_DATA_BYTES
    cut = False
    for number, part in enumerate(found.artifact.parts):
        if "text" in part:
            whole = str(part["text"])
            text, mime_type = whole[:characters], "text/plain"
            characters -= len(text)
            missing = text != whole
        else:
            written = orjson.dumps(part["data"])
            missing = len(written) > size  # half of a JSON value cannot be read: all of it or nothing
            text, mime_type = "" if missing else written.decode(), "application/json"
            size -= 0 if missing else len(written)
        cut = cut or missing
        if text or not missing:
            meta = {"bulkhead/part": number, "bulkhead/updatedAt": found.updated_at.isoformat()}
            contents.append(types.TextResourceContents(uri=uri, mime_type=mime_type, text=text, _meta=meta))
    if cut:
        contents.append(notice(uri, CUT))
    return Done(value=contents, documents=cited_documents(part.get("data") for part in found.artifact.parts))


ARTIFACT = Template(
    kind="artifact",
    title="A task's result",
    description="What a task that you may see has made so far, by the task's id and the artifact's name.",
    uri="bulkhead://tasks/{id}/artifacts/{name}",
    scope=Scope.TASKS_RUN,
    read=read_artifact,
    completers={"id": task_ids, "name": artifact_names},
)

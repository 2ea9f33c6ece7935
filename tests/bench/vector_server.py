"""An embeddings endpoint that looks vectors up: `python -m tests.bench.vector_server FILE PORT`.

Stands in for a model in the benchmark of the whole server, where pgbench gets its vectors out of a table: both sides
then run the same SQL with the same parameters, and what the server adds is HTTP, token, limits, one more HTTP call for
the vector, and its answer. It is no model, and the report says so; the built-in model is measured beside it.
FILE is an .npz with `texts` and `vectors`. A text that is not in it gets a fixed vector: the server's check at its
start.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvicorn


class _Lookup:
    """An ASGI application with one answer per text, encoded before it is asked."""

    def __init__(self, texts: list[str], vectors: list[list[float]]) -> None:
        self._rows = {text: orjson.dumps(vector) for text, vector in zip(texts, vectors, strict=True)}
        self._other = orjson.dumps([1.0] + [0.0] * (len(vectors[0]) - 1))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        texts = orjson.loads(body)["input"] if body else []
        rows = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%s}' % (index, self._rows.get(text, self._other))
            for index, text in enumerate(texts)
        )
        answer = b'{"object":"list","data":[%s],"model":"lookup"}' % rows
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def main() -> None:
    """Serve until a signal ends it."""
    stored = np.load(Path(sys.argv[1]))
    app = _Lookup([str(text) for text in stored["texts"]], stored["vectors"].tolist())
    uvicorn.run(
        app,  # pyright: ignore[reportArgumentType]
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()

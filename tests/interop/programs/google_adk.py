"""BASE TOKEN: has google-adk's RemoteA2aAgent ask an A2A server, and prints what its runner sees, as JSON lines.

Runs in an environment of its own (`make interop-a2a`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anyio
import httpx
from a2a.client import ClientConfig, ClientFactory
from google.adk.agents.remote_a2a_agent import RemoteA2aAgent
from google.adk.events import Event
from google.adk.runners import InMemoryRunner
from google.genai import types

BOUND_S = 60.0
QUESTION = "What is the notice period of the lease?"
OPTIONS = {"confirm": True, "profile": "legal"}


def agent(name: str, base: str, http: httpx.AsyncClient, skill: str, **more: Any) -> RemoteA2aAgent:
    """Return an agent that stands for one skill of the server."""
    factory = ClientFactory(ClientConfig(httpx_client=http))
    return RemoteA2aAgent(
        name=name,
        agent_card=f"{base}/.well-known/agent-card.json",
        a2a_client_factory=factory,
        a2a_request_meta_provider=lambda _context, _message: {"skillId": skill},
        **more,
    )


class Conversation:
    """One session with the agent; keeps what its runner saw, turn by turn."""

    def __init__(self, remote: RemoteA2aAgent) -> None:
        """Begin."""
        self.runner = InMemoryRunner(agent=remote, app_name="interop")
        self.turns: list[list[dict[str, Any]]] = []

    async def say(self, *parts: types.Part) -> list[Event]:
        """Say something and return the events of the answer."""
        service = self.runner.session_service
        known = {"app_name": "interop", "user_id": "ada", "session_id": "one"}
        session = await service.get_session(**known) or await service.create_session(**known)
        said = types.Content(role="user", parts=list(parts))
        stream = self.runner.run_async(user_id="ada", session_id=session.id, new_message=said)
        events = [event async for event in stream]
        self.turns.append([event.model_dump(mode="json", exclude_none=True) for event in events])
        return events


async def main(base: str, token: str) -> None:
    """Ask twice in one conversation; have a report planned, twice, and answer what is asked about it."""
    blob = b"<a2a_datapart_json>" + json.dumps(OPTIONS).encode() + b"</a2a_datapart_json>"
    report = types.Part(text="lease"), types.Part(inline_data=types.Blob(mime_type="text/plain", data=blob))
    with anyio.fail_after(BOUND_S):
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=BOUND_S) as http:
            asking = Conversation(agent("counsel", base, http, "rag"))
            await asking.say(types.Part(text=QUESTION))
            await asking.say(types.Part(text="When is rent due?"))
            by_text = Conversation(agent("researcher", base, http, "research"))
            await by_text.say(*report)
            await by_text.say(types.Part(text="Definitions"))
            by_call = Conversation(agent("researcher", base, http, "research"))
            (call,) = [call for event in await by_call.say(*report) for call in event.get_function_calls()]
            answer = types.FunctionResponse(id=call.id, name=call.name, response={"result": "Definitions"})
            await by_call.say(types.Part(function_response=answer))
            print(json.dumps({"rag": asking.turns, "by_text": by_text.turns, "by_call": by_call.turns}))
            for one in (asking, by_text, by_call):
                await one.runner.close()


anyio.run(main, *sys.argv[1:])

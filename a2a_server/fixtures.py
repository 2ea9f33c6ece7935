"""The handler as the A2A compatibility kit needs it: a messageId of the kit's chooses what is done with its message.

Above: `app`, where BULKHEAD_TEST_FIXTURES is on and nowhere else. Below: `handler`, the workflow `fixture`. Everything
but the answer that is a message is a task like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

from a2a.server.context import ServerCallContext
from a2a.types import a2a_pb2 as pb

from a2a_server.handler import TaskHandler
from a2a_server.protocol import incoming, outgoing
from a2a_server.protocol.incoming import Sent
from workflows.fixture import FIXTURE, case_of
from workflows.registry import EVERY

__all__ = ["FixtureHandler"]

MESSAGE_RESPONSE = "tck-message-response"


class FixtureHandler(TaskHandler):
    """A TaskHandler that knows the kit's messages."""

    workflows = EVERY

    async def on_message_send(self, params: pb.SendMessageRequest, context: ServerCallContext) -> pb.Task | pb.Message:
        """SendMessage, which may answer with a message instead of a task (3.1.1)."""
        message = _message(params)
        return message if message is not None else await super().on_message_send(params, context)

    async def on_message_send_stream(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[outgoing.StreamEvent | pb.Message]:
        """SendStreamingMessage, whose stream may be one message (3.1.2)."""
        message = _message(params)
        if message is not None:
            yield message
            return
        async with aclosing(super().on_message_send_stream(params, context)) as events:
            async for event in events:
                yield event

    def sent(self, params: pb.SendMessageRequest) -> Sent:
        """Return the message, with the case that its id names as what is asked for."""
        sent = super().sent(params)
        case = case_of(params.message.message_id)
        if case is None or sent.skill is not None or sent.task_id is not None:
            return sent
        return dataclasses.replace(sent, skill=FIXTURE.name, options={"case": case})


def _message(params: pb.SendMessageRequest) -> pb.Message | None:
    sent = incoming.sent_message(params)
    if not params.message.message_id.startswith(MESSAGE_RESPONSE):
        return None
    return pb.Message(
        message_id=str(uuid4()),
        context_id=sent.context_id or str(uuid4()),
        role=pb.Role.ROLE_AGENT,
        parts=[pb.Part(text="Direct message response", media_type="text/plain")],
    )

"""What every call must pass, whatever binding it came by: one wrapper before the handler, for all three.

Above: the bindings. Below: `handler`. The tenant comes from the token alone: what a request says of it, in a field, a
path or a query, is compared with the token and never used. Nothing leaves but A2A errors without our exceptions' texts.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection, Generator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from a2a.extensions.common import HTTP_EXTENSION_HEADER
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.types import a2a_pb2 as pb
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0, VERSION_HEADER
from a2a.utils.errors import (
    A2AError,
    ExtensionSupportRequiredError,
    InternalError,
    InvalidParamsError,
    VersionNotSupportedError,
)
from a2a.utils.proto_utils import validate_proto_required_fields

from a2a_server.errors import a2a_error
from rag.errors import BulkheadError
from rag.identity.principal import Principal

__all__ = ["Guard", "answering", "call_context"]

_log = logging.getLogger(__name__)


def call_context(
    principal: Principal, headers: Mapping[str, str], *, extensions: Collection[str] = ()
) -> ServerCallContext:
    """Return the context of one call: what the handler may read of it is `state`.

    Args:
        principal: The verified caller.
        headers: By lower-case name: HTTP's headers or gRPC's metadata.
        extensions: The URIs that the caller has activated.
    """
    return ServerCallContext(
        state={"headers": dict(headers), "principal": principal}, requested_extensions=set(extensions)
    )


class Guard(RequestHandler):
    """Lets calls of one protocol version through to the handler."""

    def __init__(self, handler: RequestHandler, *, version: str, required: Collection[str] = ()) -> None:
        """`version` is Major.Minor, `required` are the extensions that every caller must have activated."""
        self._handler = handler
        self._version = version
        self._required = frozenset(required)

    async def on_message_send(self, params: pb.SendMessageRequest, context: ServerCallContext) -> pb.Task | pb.Message:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_message_send(params, context)

    async def on_message_send_stream(
        self, params: pb.SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Any]:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            async with aclosing(self._handler.on_message_send_stream(params, context)) as events:
                async for event in events:
                    yield event

    async def on_subscribe_to_task(
        self, params: pb.SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Any]:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            async with aclosing(self._handler.on_subscribe_to_task(params, context)) as events:
                async for event in events:
                    yield event

    async def on_get_task(self, params: pb.GetTaskRequest, context: ServerCallContext) -> pb.Task | None:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_get_task(params, context)

    async def on_list_tasks(self, params: pb.ListTasksRequest, context: ServerCallContext) -> pb.ListTasksResponse:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_list_tasks(params, context)

    async def on_cancel_task(self, params: pb.CancelTaskRequest, context: ServerCallContext) -> pb.Task | None:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_cancel_task(params, context)

    async def on_create_task_push_notification_config(
        self, params: pb.TaskPushNotificationConfig, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_create_task_push_notification_config(params, context)

    async def on_get_task_push_notification_config(
        self, params: pb.GetTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> pb.TaskPushNotificationConfig:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_get_task_push_notification_config(params, context)

    async def on_list_task_push_notification_configs(
        self, params: pb.ListTaskPushNotificationConfigsRequest, context: ServerCallContext
    ) -> pb.ListTaskPushNotificationConfigsResponse:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_list_task_push_notification_configs(params, context)

    async def on_delete_task_push_notification_config(
        self, params: pb.DeleteTaskPushNotificationConfigRequest, context: ServerCallContext
    ) -> None:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            await self._handler.on_delete_task_push_notification_config(params, context)

    async def on_get_extended_agent_card(
        self, params: pb.GetExtendedAgentCardRequest, context: ServerCallContext
    ) -> pb.AgentCard:
        """See `RequestHandler`."""
        with self._guarded(params, context):
            return await self._handler.on_get_extended_agent_card(params, context)

    @contextmanager
    def _guarded(self, params: Any, context: ServerCallContext) -> Generator[None]:
        with answering():
            self._check_version(context)
            self._check_extensions(context)
            _check_tenant(params, context)
            validate_proto_required_fields(params)
            yield

    def _check_version(self, context: ServerCallContext) -> None:
        asked = str(context.state["headers"].get(VERSION_HEADER.lower(), "")).strip() or PROTOCOL_VERSION_0_3
        if ".".join(asked.split(".")[:2]) != self._version:
            raise VersionNotSupportedError(
                f"this interface speaks A2A {self._version}; name it in {VERSION_HEADER}"
                if self._version == PROTOCOL_VERSION_1_0
                else f"this method is of A2A {self._version}; send {VERSION_HEADER}: {self._version}, or none"
            )

    def _check_extensions(self, context: ServerCallContext) -> None:
        missing = self._required - context.requested_extensions
        if missing:
            raise ExtensionSupportRequiredError(f"{HTTP_EXTENSION_HEADER} must name {', '.join(sorted(missing))}")


@contextmanager
def answering() -> Generator[None]:
    """Let only A2A errors out, with nothing in them that is not the caller's.

    NOTE: `from None`: the SDK records what is raised here, chain and all, in spans; a driver's text may quote rows.
    """
    try:
        yield
    except A2AError:
        raise
    except BulkheadError as exc:
        raise a2a_error(exc) from None
    except Exception:  # noqa: BLE001  # what is not ours to tell becomes an error without a text
        _log.exception("a request failed")
        raise InternalError from None


def _check_tenant(params: Any, context: ServerCallContext) -> None:
    """Refuse a request that names another tenant than its token; the SDK puts a path's tenant into the context.

    Raises:
        InvalidParamsError: It does.
    """
    principal: Principal = context.state["principal"]
    if {context.tenant, params.tenant} - {"", str(principal.tenant_id)}:
        raise InvalidParamsError("tenant is not the tenant of the token", {"code": "invalid_input"})

"""Push notification configurations (A2A 1.0, sections 3.1.7 to 3.1.10): wire messages in, the caller's webhooks out.

Above: `handler`. Below: `rag.push`. Credentials are taken and never given back: an answer says which scheme there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from a2a.types import a2a_pb2 as pb

from a2a_server.protocol import incoming
from rag.db.pool import Database, Session
from rag.errors import InvalidInput
from rag.identity import cursors
from rag.identity.principal import Principal
from rag.identity.secretbox import SecretBox
from rag.outbound import check_url
from rag.push import store
from rag.push.values import MAX_CONFIGS, Credentials, NewWebhook, Webhook

__all__ = ["PushConfigs"]

_CURSOR = "push"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushConfigs:
    """The four methods, and what SendMessage brings along. All of it is the caller's own; others' is absent."""

    database: Database
    box: SecretBox
    cursor_key: bytes = field(repr=False)
    allow_loopback: bool
    """Whether webhooks may be on this machine: for tests."""

    async def create(
        self, principal: Principal, params: pb.TaskPushNotificationConfig
    ) -> pb.TaskPushNotificationConfig:
        """CreateTaskPushNotificationConfig: told the task as it is, then what happens to it. The same id replaces.

        Raises:
            NotFound: The caller sees no such task.
            InvalidInput: The URL, the id or the credentials cannot be used.
            Conflict: The caller has as many webhooks on the task as it may.
        """
        task_id = incoming.task_id_of(params.task_id)
        new = self._webhook(params)
        async with self.database.tenant(principal) as session:
            return _message(await store.create(session, principal, self.box, task_id, new))

    async def get(
        self, principal: Principal, params: pb.GetTaskPushNotificationConfigRequest
    ) -> pb.TaskPushNotificationConfig:
        """GetTaskPushNotificationConfig.

        Raises:
            NotFound: The caller has none of that id on such a task.
        """
        task_id = incoming.task_id_of(params.task_id)
        async with self.database.tenant(principal) as session:
            return _message(await store.get(session, task_id, params.id))

    async def list(
        self, principal: Principal, params: pb.ListTaskPushNotificationConfigsRequest
    ) -> pb.ListTaskPushNotificationConfigsResponse:
        """ListTaskPushNotificationConfigs, by id; a page holds all that there may be unless a smaller one is asked for.

        Raises:
            NotFound: The caller sees no such task.
            InvalidInput: The page size is negative, or the page token is not ours.
        """
        task_id = incoming.task_id_of(params.task_id)
        if params.page_size < 0:
            raise InvalidInput("pageSize must not be negative")
        size = min(params.page_size or MAX_CONFIGS, MAX_CONFIGS)
        after = self._position(principal, task_id, params.page_token) if params.page_token else None
        async with self.database.tenant(principal) as session:
            found = await store.list_(session, task_id, wanted=size + 1, after=after)
        response = pb.ListTaskPushNotificationConfigsResponse(configs=[_message(hook) for hook in found[:size]])
        if len(found) > size:
            position = [str(task_id), found[size - 1].config_id]
            response.next_page_token = cursors.mint(self.cursor_key, _CURSOR, principal.tenant_id, position)
        return response

    async def delete(self, principal: Principal, params: pb.DeleteTaskPushNotificationConfigRequest) -> None:
        """DeleteTaskPushNotificationConfig. Done is done: what is not there is deleted.

        Raises:
            NotFound: The caller sees no such task.
        """
        task_id = incoming.task_id_of(params.task_id)
        async with self.database.tenant(principal) as session:
            await store.delete(session, task_id, params.id)

    def check(self, config: pb.TaskPushNotificationConfig) -> None:
        """Refuse a configuration that `from_send` would refuse, before anything is stored.

        Raises:
            InvalidInput: As `create`.
        """
        self._webhook(config).check()

    async def from_send(
        self, session: Session, principal: Principal, task_id: UUID, config: pb.TaskPushNotificationConfig, *, new: bool
    ) -> None:
        """Add the webhook that a message brings along, in the transaction that takes the message.

        Args:
            session: Of that transaction.
            principal: The caller.
            task_id: The task that the message is for, whatever the configuration says.
            config: As received.
            new: Whether the task is new: then it is told from its first event on.

        Raises:
            InvalidInput, Conflict: As `create`.
        """
        hook = self._webhook(config)
        await store.create(session, principal, self.box, task_id, hook, first_seq=1 if new else None)

    def _webhook(self, config: pb.TaskPushNotificationConfig) -> NewWebhook:
        check_url(config.url, allow_loopback=self.allow_loopback)
        named = config.HasField("authentication")
        return NewWebhook(
            url=config.url,
            config_id=config.id or None,
            credentials=Credentials(
                token=config.token or None,
                scheme=config.authentication.scheme if named else None,
                credentials=(config.authentication.credentials or None) if named else None,
            ),
        )

    def _position(self, principal: Principal, task_id: UUID, token: str) -> str:
        listed, last = cursors.read(self.cursor_key, _CURSOR, principal.tenant_id, token)
        if listed != str(task_id):
            raise InvalidInput("the page token is another task's")
        return str(last)


def _message(hook: Webhook) -> pb.TaskPushNotificationConfig:
    message = pb.TaskPushNotificationConfig(id=hook.config_id, task_id=str(hook.task_id), url=hook.url)
    if hook.scheme is not None:
        message.authentication.scheme = hook.scheme
    return message

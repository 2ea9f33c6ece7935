"""Webhooks are told by the worker: its courier, and the one place where the worker knows how A2A writes things down.

Above: `__main__`. Below: `rag.push.courier`. NOTE: the import of a face's pure functions is the one listed exception to
the rule that faces stand above the worker (pyproject.toml): what a webhook is told must be what a stream shows.
"""

from __future__ import annotations

import logging

from a2a_server.protocol.notices import event_notice, snapshot_notice
from rag.db.listener import Wakeups
from rag.identity.outward import load_outward_key
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.outbound import pinned_client
from rag.push.courier import PUSH_CHANNEL, Courier, Rendering
from rag.push.values import PACE, PURPOSE, Pace
from rag.runtime import Runtime

__all__ = ["PUSH_CHANNEL", "run_courier"]

_log = logging.getLogger(__name__)


async def run_courier(runtime: Runtime, wakeups: Wakeups, *, pace: Pace = PACE) -> None:
    """Tell webhooks until cancelled. Without a key to sign with there is nothing to do: no webhook is taken then.

    Raises:
        Misconfigured: The key, or BULKHEAD_CA_CERTIFICATE, cannot be used.
    """
    settings = runtime.settings
    key = load_outward_key(settings.certs_dir)
    if key is None:
        _log.warning("no key signs notifications, so there are none; `bulkhead secrets init` makes one")
        return
    assert settings.seal_keys_file is not None  # open_runtime
    async with pinned_client(allow_loopback=settings.allows_loopback, ca=settings.ca_certificate) as client:
        courier = Courier(
            database=runtime.database,
            client=client,
            box=SecretBox.derive(load_seal_keys(settings.seal_keys_file), purpose=PURPOSE),
            key=key,
            issuer=settings.a2a_url,
            rendering=Rendering(event=event_notice, snapshot=snapshot_notice),
            pace=pace,
            clock=runtime.clock,
        )
        await courier.serve(wakeups)

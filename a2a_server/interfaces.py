"""Where the bindings are reached, as the agent cards list it, the preferred one first (A2A 1.0, section 8.3).

Above: `card`, `app`. Below: settings.
"""

from __future__ import annotations

from a2a.types.a2a_pb2 import AgentInterface
from a2a.utils.constants import PROTOCOL_VERSION_0_3, PROTOCOL_VERSION_1_0, TransportProtocol

from rag.settings import Settings

__all__ = ["REST_PATH", "RPC_PATH", "interfaces"]

RPC_PATH = "/a2a/jsonrpc"
REST_PATH = "/a2a/rest"


def interfaces(settings: Settings, *, extended: bool = False) -> list[AgentInterface]:
    """Return the interfaces for the public card, or with gRPC's for the extended one.

    gRPC is another origin than the card's, and a card that names one is refused whole by some clients.
    """
    places = [
        (settings.a2a_url + RPC_PATH, TransportProtocol.JSONRPC),
        (settings.a2a_url + REST_PATH, TransportProtocol.HTTP_JSON),
    ]
    if extended and settings.a2a_grpc_url is not None:
        places.append((settings.a2a_grpc_url, TransportProtocol.GRPC))
    return [
        AgentInterface(url=url, protocol_binding=binding.value, protocol_version=version)
        for version in (PROTOCOL_VERSION_1_0, PROTOCOL_VERSION_0_3)
        for url, binding in places
    ]

"""The fixture prompts and resources that the suite's scenarios ask for by name.

Above: `fixtures`.
"""

from __future__ import annotations

import json
import re

import mcp_types as types

from tests.conformance.input_required import ask
from tests.conformance.tools import PIXEL

__all__ = ["PROMPTS", "RESOURCES", "TEMPLATES", "prompt", "resource"]

_STATIC_TEXT = "test://static-text"
_STATIC_BINARY = "test://static-binary"
_WATCHED = "test://watched-resource"
_TEMPLATE = re.compile(r"test://template/(?P<id>[^/]+)/data")
RESOURCES = [
    types.Resource(uri=_STATIC_TEXT, name="static-text", description="A fixed text.", mime_type="text/plain"),
    types.Resource(uri=_STATIC_BINARY, name="static-binary", description="A fixed image.", mime_type="image/png"),
    types.Resource(uri=_WATCHED, name="watched-resource", description="One to subscribe to.", mime_type="text/plain"),
]
TEMPLATES = [
    types.ResourceTemplate(
        uri_template="test://template/{id}/data",
        name="template",
        description="What its address says.",
        mime_type="application/json",
    )
]
PROMPTS = [
    types.Prompt(name="test_simple_prompt", description="One fixed message."),
    types.Prompt(
        name="test_prompt_with_arguments",
        description="Repeats its two arguments.",
        arguments=[
            types.PromptArgument(name="arg1", description="The first.", required=True),
            types.PromptArgument(name="arg2", description="The second.", required=True),
        ],
    ),
    types.Prompt(
        name="test_prompt_with_embedded_resource",
        description="Holds a resource.",
        arguments=[types.PromptArgument(name="resourceUri", description="Its address.", required=True)],
    ),
    types.Prompt(name="test_prompt_with_image", description="Holds an image."),
    types.Prompt(name="test_input_required_result_prompt", description="Asks back before it answers."),
]


def resource(uri: str) -> types.ReadResourceResult | None:
    """Return what stands at `uri`; None where it is none of ours."""
    if uri == _STATIC_BINARY:
        return types.ReadResourceResult(
            contents=[types.BlobResourceContents(uri=uri, mime_type="image/png", blob=PIXEL)]
        )
    template = _TEMPLATE.fullmatch(uri)
    texts = {
        _STATIC_TEXT: "This is the content of the static text resource.",
        _WATCHED: "This is the content of the watched resource.",
    }
    if template is not None:
        found = {"id": template["id"], "templateTest": True, "data": f"Data for ID: {template['id']}"}
        text, mime_type = json.dumps(found), "application/json"
    elif uri in texts:
        text, mime_type = texts[uri], "text/plain"
    else:
        return None
    return types.ReadResourceResult(contents=[types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)])


def prompt(params: types.GetPromptRequestParams) -> types.GetPromptResult | types.InputRequiredResult:
    """Return the messages of one of PROMPTS."""
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            return _messages(types.TextContent(text="This is a simple prompt for testing."))
        case "test_prompt_with_arguments":
            text = f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"
            return _messages(types.TextContent(text=text))
        case "test_prompt_with_embedded_resource":
            held = types.TextResourceContents(
                uri=given.get("resourceUri", _STATIC_TEXT), mime_type="text/plain", text="Embedded for testing."
            )
            return _messages(
                types.EmbeddedResource(resource=held), types.TextContent(text="Please process the resource above.")
            )
        case "test_prompt_with_image":
            image = types.ImageContent(data=PIXEL, mime_type="image/png")
            return _messages(image, types.TextContent(text="Please analyze the image above."))
        case _:
            if params.input_responses and "user_context" in params.input_responses:
                return _messages(types.TextContent(text="Use the context that was given."))
            return types.InputRequiredResult(
                input_requests={"user_context": ask("What context should the prompt use?", "context")}
            )


def _messages(*contents: types.ContentBlock) -> types.GetPromptResult:
    return types.GetPromptResult(
        description="A fixture.",
        messages=[types.PromptMessage(role="user", content=content) for content in contents],
    )

"""What schemathesis cannot know: which models there are. Values that the document allows become one of them, so that answers are given."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    """Let a request that names a model name one that is served."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 256:
        return body | {"model": "cards"}
    return body

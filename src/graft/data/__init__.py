"""Data: files to rows (`read`), rows to token ids (`tokenise`), ids to batches (`epochs`, `collate`), and a look at them (`preview`)."""

from graft.data.batches import IGNORED, collate, epochs
from graft.data.preview import preview
from graft.data.read import read
from graft.data.rows import BadRow, Message, Row, Table, overlap, split
from graft.data.tokenise import Example, Tokenised, prompt_ids, prompts, tokenise

__all__ = [
    "IGNORED",
    "BadRow",
    "Example",
    "Message",
    "Row",
    "Table",
    "Tokenised",
    "collate",
    "epochs",
    "overlap",
    "preview",
    "prompt_ids",
    "prompts",
    "read",
    "split",
    "tokenise",
]

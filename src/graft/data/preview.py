"""A look at what will be trained: rows printed token by token, each coloured trained or ignored.

Readable without colour too: tokens are parted by a thin bar, and the trained ones stand between « and ».
"""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from graft.data.tokenise import Example, Tokenised, counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED, TRAINED_ALT = "bold black on green3", "bold black on pale_green1"
IGNORED, IGNORED_ALT = "grey50", "grey62"
BAR = "│"


def preview(tokenised: Tokenised, tokenizer: "PreTrainedTokenizerBase", console: Console, n: int = 3, part: bool = False) -> None:
    """Print the first `n` examples, a legend before them and the counts after; `part` says that there are more rows than those."""
    legend = Text("Each token is ").append(" trained ", TRAINED).append(" and stands between « and », or is ").append("ignored", IGNORED)
    console.print(legend.append(f"; {BAR} parts tokens, ⏎ is a newline."))
    for number, example in enumerate(tokenised.examples[:n], 1):
        where = example.row.where or example.row.id
        console.print()
        console.print(Text(f"row {number} · {where} · {len(example.ids)} tokens, {example.trained} trained", style="bold"))
        console.print(coloured(example, tokenizer))
    console.print()
    console.print(Text(counts(tokenised, part), style="bold"))
    if tokenised.note:
        console.print(Text(f"Note: {tokenised.note}.", style="yellow"))


def counts(tokenised: Tokenised, part: bool = False) -> str:
    """How many rows and tokens, how many of them trained."""
    share = 100 * tokenised.trained / max(1, tokenised.tokens)
    longest = max((len(example.ids) for example in tokenised.examples), default=0)
    rows, trained = counted(len(tokenised.examples), "row"), f"{tokenised.trained:,} trained ({share:.1f}%)"
    return f"{f'of the first {rows}:' if part else f'{rows},'} {tokenised.tokens:,} tokens, {trained}; the longest row has {longest:,}"


def coloured(example: Example, tokenizer: "PreTrainedTokenizerBase") -> Text:
    """One example as styled text."""
    shown = Text()
    pieces = readable(example.ids[: example.supervised], tokenizer)
    for index, piece in enumerate(pieces):
        shown.append(piece, (IGNORED, IGNORED_ALT)[index % 2])
        if index + 1 < len(pieces) and not piece.endswith("\n"):
            shown.append(BAR, "grey30")
    shown.append("«", "bold green3")
    for index, piece in enumerate(trained := readable(example.ids[example.supervised :], tokenizer)):
        shown.append(piece, (TRAINED, TRAINED_ALT)[index % 2])
        if index + 1 < len(trained) and not piece.endswith("\n"):
            shown.append(BAR, "grey30")
    return shown.append("»", "bold green3")


def readable(ids: tuple[int, ...], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The text of each token; tokens that only together make a character (bytes of an emoji) are shown as one."""
    pieces: list[str] = []
    pending: list[int] = []
    for index, token in enumerate(ids):
        pending.append(token)
        piece = str(tokenizer.decode(pending, clean_up_tokenization_spaces=False))
        if piece.endswith("\N{REPLACEMENT CHARACTER}") and index + 1 < len(ids) and len(pending) < 4:
            continue
        pieces.append(printable(piece))
        pending = []
    return pieces


def printable(piece: str) -> str:
    """Newlines made visible, control characters spelt out: a data file must not be able to drive the terminal."""
    marked = piece.replace("\r", "␍").replace("\n", "⏎\n").replace("\t", "⇥")
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in marked)

"""Which request each token of a packed batch belongs to, and where its keys and values lie."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A packed batch of T tokens. int32: q_ends [rows + 1], the running sum of the requests' tokens in it; k_ends [rows + 1], that of all
    their keys, these tokens' own included; table [rows, most pages], the pages of each request in order, anything beyond its last.

    Rows beyond the last request have no tokens. `single`: a row has one token at most, and row r's is token r. `parts`: into how many
    parts the keys of a row are cut, so that few rows with many keys have work for every processor.
    """

    q_ends: Tensor
    k_ends: Tensor
    table: Tensor
    single: bool = False
    parts: int = 1

    @property
    def rows(self) -> int:
        """How many requests there is room for."""
        return len(self.q_ends) - 1

    def requests(self) -> Iterator[tuple[int, int, int, int]]:
        """Each request's row, first token, end of its tokens, and how many keys it has."""
        q_ends, k_ends = self.q_ends.tolist(), self.k_ends.tolist()
        for row in range(self.rows):
            if q_ends[row] < q_ends[row + 1]:
                yield row, q_ends[row], q_ends[row + 1], k_ends[row + 1] - k_ends[row]

"""Small data files for tests."""

import json


def write_rows(path, count):
    """`count` rows of prompt and completion."""
    lines = [json.dumps({"prompt": f"Where is card {number}?", "completion": f"card {number % 5}"}) for number in range(count)]
    path.write_text("\n".join(lines) + "\n")

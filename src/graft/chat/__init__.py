"""Chat in a terminal: with a server (`remote`) or with an engine in this process (`local`), switching adapters in the middle."""

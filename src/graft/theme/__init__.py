"""The colours and typefaces of Graft's pages, light and dark, as CSS variables: the comparison report and the playground share them."""

from importlib import resources

CSS = (resources.files(__name__) / "theme.css").read_text(encoding="utf-8")

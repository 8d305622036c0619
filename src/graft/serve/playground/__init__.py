"""The playground: a page that asks two models of a server the same thing and shows both answers side by side as they come.

    PAGES[path] = (content type, bytes)      "/" is the page itself, the rest is what it loads
    HEADERS                                  what a server sends with each

Nothing is built, and nothing is loaded from anywhere but the server that gave the page: its content security policy allows no other
source and no script or style inside the page. The files hold no data and need no API key; the page asks for the key where the server does.
"""

from importlib import resources

from graft import theme

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
TYPES = {".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
FILES = ("page.css", "page.js", "api.js", "turns.js", "settings.js")


def asset(name: str) -> tuple[str, bytes]:
    """A file of the page: its content type and its bytes."""
    return TYPES[name[name.rindex(".") :]], (resources.files(__name__) / name).read_bytes()


PAGES: dict[str, tuple[str, bytes]] = {
    "/": asset("index.html"),
    "/playground/theme.css": (TYPES[".css"], theme.CSS.encode()),
    **{f"/playground/{name}": asset(name) for name in FILES},
}

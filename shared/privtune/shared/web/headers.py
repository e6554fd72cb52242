"""What a browser may do with our pages: nothing but show them, with files of this server alone."""

from __future__ import annotations

# No inline script or style and no eval, so that text which reached a page by mistake stays text.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Not `no-referrer`: with it a browser's form posts say `Origin: null`, and could not be told from a stranger's.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
STATIC_HEADERS = {"cache-control": "public, max-age=31536000, immutable", "x-content-type-options": "nosniff"}


def same_site(headers: dict[str, str]) -> bool:
    """Whether a request that changes something came from a page of this server, by what browsers say of it.

    headers: with lower-case names. Without `Origin` and `Sec-Fetch-Site` the sender is no browser of the last years,
    and is refused.
    """
    if (origin := headers.get("origin")) is not None:
        return origin.partition("://")[2] == headers.get("host", "")
    return headers.get("sec-fetch-site") == "same-origin"

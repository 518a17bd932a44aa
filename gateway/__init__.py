"""The gateway: chat requests in, text out. Holds the text, the template and the media; no torch."""

"""Bridges to other libraries; each module needs its own extra, none is imported for you."""

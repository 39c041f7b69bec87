"""The dashboard: pages for people, rendered here, kept fresh by a little script of our own."""

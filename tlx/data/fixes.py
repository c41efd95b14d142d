"""Decisions on single images of a data set, which `tlx check` proposes and a person has looked through."""

COLUMNS = ("part", "path", "problem", "label", "suggested", "decision", "sure", "group", "content")

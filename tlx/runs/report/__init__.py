"""The page of a run, `report.html`: one file that shows what was trained, what it gets wrong, and how far to trust it.

`reporting` reads and writes; `contents` is what a page shows of a run; `page` and `comparison` draw it; the others
are the parts of that.
"""

"""Networks of other projects, read into ours and written from ours.

Readers read data only: they run no code of a file and download nothing.
"""

"""Networks of other projects, read into ours and written from ours.

What is read is data only: no code of a file is ever run, and nothing is downloaded.
"""

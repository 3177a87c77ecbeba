"""Captioned images of several layouts: text files, tables, class folders, COCO, webdataset.

`open_source` of `ddistill.data.captions.sources` reads any of them as a `CaptionSource`: rows in a
fixed order, and one `Problem` for everything that is not used.
"""

"""Bytes to arrays and back; nothing that is read is trusted.

png.py           check, decode and write PNGs, and the stored layout
images.py        PNG or JPEG of another tool
tar_writer.py    members of our tars, a batch at a time
tar_reader.py    members of any tar, one by one
sidecar.py       the Parquet table beside each tar
"""

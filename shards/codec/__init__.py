"""Bytes to arrays and back; nothing that is read is trusted.

png         check, decode and write PNGs, and the stored layout
images      PNG or JPEG of another tool
tar_writer  members of our tars, a batch at a time
tar_reader  members of any tar, one by one
"""

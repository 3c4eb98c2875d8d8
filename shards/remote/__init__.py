"""Fetch data sets from elsewhere into a cache, verified; from then on they are local folders.

download  remote folders (s3, gs, hf, https) and one file: continued, verified, renamed
cache     the files of a data set into the cache: `fetch`, `local`
"""

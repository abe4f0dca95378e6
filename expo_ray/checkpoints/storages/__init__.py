"""Where files lie: this disk, an object store, the Hub; ranged reads, retries, atomic writes.

Nothing here knows what the files hold.
"""

"""Tables."""


def written(rows):
    return ""

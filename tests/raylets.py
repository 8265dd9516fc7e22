"""Starting raylets on a machine that has other things to do."""


def until_it_starts(start, *arguments, **more):
    """A raylet gives up when its helpers take more than 15 s (Ray issue 65983), as they do on a busy machine."""
    for attempt in range(5):
        try:
            return start(*arguments, **more)
        except Exception:  # Ray raises bare ones
            if attempt == 4:
                raise

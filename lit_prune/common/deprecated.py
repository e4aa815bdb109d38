"""Old names that users may have written: they work, and say what they are called now."""

from __future__ import annotations

import warnings


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Tell that ``old`` still works and is called ``new``.

    Args:
        old: What the user wrote.
        new: What to write.
        stacklevel: Of the user's line, counted from here as for :func:`warnings.warn`.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_renamed("before_wrap=True", "epochs='before_wrap'")
        >>> str(caught[0].message)
        "before_wrap=True is deprecated: write epochs='before_wrap'."
    """
    warnings.warn(f"{old} is deprecated: write {new}.", FutureWarning, stacklevel=stacklevel)

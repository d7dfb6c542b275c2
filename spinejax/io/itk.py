"""SimpleITK, imported when the first file needs it. No other module imports it."""

from types import ModuleType


def library() -> ModuleType:
    """Return the module SimpleITK; ITK's warnings, which it prints by itself, are off."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK

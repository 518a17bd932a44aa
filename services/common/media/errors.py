"""Why media cannot be used."""


class MediaError(Exception):
    """The media themselves are at fault: broken, of a refused format, or too large.

    `reason` is UPPER_SNAKE and stable; `message` never repeats a library's own words, which may hold paths or content.
    `file_index` says which file of several is at fault.
    """

    def __init__(self, reason: str, message: str, *, file_index: int | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.file_index = file_index


class MediaRuleError(ValueError):
    """An option cannot apply to these media.

    `option` is the field's name in `content.proto` ("fps", "resized_width"); empty when the media alone are at fault
    (an aspect ratio above 200, a single frame).
    """

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option
        self.message = message

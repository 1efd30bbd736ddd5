"""Images as uint8 arrays: of PNG or JPEG bytes, and of columns of Arrow tables that hold them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from trainables.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESIZE = "Resize them to one size before writing the file."
_GREY_MODES = frozenset({"1", "L"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "LA", "CMYK", "YCbCr"})


def same_size(shapes: Iterable[tuple[int, ...]], where: str, remedy: str) -> None:
    """Raise DataError unless all images, of shapes (C, H, W), have the same H and W.

    Args:
        shapes: Those of the images.
        where: File or folder, for the message.
        remedy: What to do, for the message.
    """
    sizes = sorted({shape[1:] for shape in shapes})
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
        raise DataError(f"{where}: images must all have one size, got {listed}. {remedy}")


def stacked(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return uint8 (N, C, H, W) of images (1 or 3, H, W); C is 1 if all are grey, else 3."""
    import numpy as np

    channels = max(image.shape[0] for image in images)
    return np.stack([np.repeat(image, channels // len(image), axis=0) for image in images])


def decoded_image(content: bytes, where: str, size: int | None = None) -> NDArray[np.uint8]:
    """Return a PNG or JPEG image as uint8 of shape (1 or 3, H, W).

    Args:
        content: The file's bytes.
        where: File or row, for messages.
        size: Side of the square that it is resized to, the middle of the longer side kept; None
            leaves it as it is.

    Raises:
        DataError: It is damaged or of a mode that is not read.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.mode in _GREY_MODES | _COLOUR_MODES:
                plain = image.convert("L" if image.mode in _GREY_MODES else "RGB")
                if size is not None:
                    plain = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
                pixels = np.asarray(plain)
                return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            mode = image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where} is no readable PNG or JPEG image: {error}. Copy or download the file again."
        ) from error
    raise DataError(f"{where}: images of mode {mode} are not read; convert them to 8-bit RGB.")


def column_images(column: Any, where: str, first_row: int) -> NDArray[np.uint8]:
    """Return uint8 of shape (n, C, H, W), C being 1 if all of these images are grey, else 3.

    Args:
        column: Arrow array of n PNG or JPEG images as bytes, of structs with a field `bytes`, or
            of nested lists of shape (H, W), (H, W, C) or (C, H, W) with values 0..255.
        where: File and column, for messages.
        first_row: Row of the file that the column starts at, for messages.

    Raises:
        DataError: The column or an image in it is damaged or of another form.
    """
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        encoded = column.field("bytes")
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        encoded = column
    elif pa.types.is_nested(kind) and not pa.types.is_struct(kind):
        return _raw_images(column, where)
    else:
        raise DataError(
            f"{where} must hold image bytes, a struct with a field 'bytes', or nested lists of "
            f"pixels, got {kind}."
        )
    return _decoded(encoded.to_pylist(), where, first_row)


def _raw_images(column: Any, where: str) -> NDArray[np.uint8]:
    """Return uint8 (n, C, H, W) of nested lists of pixels."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    shape = [len(column)]
    while pa.types.is_nested(column.type):
        lengths = pc.min_max(pc.list_value_length(column)).as_py()
        if column.null_count or lengths["min"] != lengths["max"]:
            raise DataError(f"{where}: lists of pixels must all have one size; resize the images.")
        shape.append(lengths["min"])
        column = column.flatten()
    if not pa.types.is_integer(column.type) or column.null_count or len(shape) not in (3, 4):
        raise DataError(
            f"{where} must hold integer pixels of shape (H, W), (H, W, C) or (C, H, W), got "
            f"{column.type} of shape {tuple(shape[1:])}."
        )
    values = column.to_numpy(zero_copy_only=False).reshape(shape)
    if not values.size or values.min() < 0 or values.max() > 255:
        raise DataError(f"{where}: pixels must be in 0..255.")
    if values.ndim == 3:
        values = values[:, None]
    elif values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    elif values.shape[1] not in (1, 3):
        raise DataError(f"{where}: images must have 1 or 3 channels, got {tuple(shape[1:])}.")
    return np.ascontiguousarray(values, dtype=np.uint8)


def _decoded(encoded: list[bytes | None], where: str, first_row: int) -> NDArray[np.uint8]:
    """Return uint8 (n, C, H, W) of PNG or JPEG bytes; C is 1 if all are grey, else 3."""
    images = []
    for row, content in enumerate(encoded, start=first_row):
        if content is None:
            raise DataError(
                f"{where}: row {row} holds no bytes. Write the file with the images embedded, "
                "not only their paths."
            )
        images.append(decoded_image(content, f"{where}, row {row}"))
    same_size({image.shape for image in images}, where, RESIZE)
    return stacked(images)

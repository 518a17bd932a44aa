"""Where the fonts are: files inside the packages of requirements-train.txt; the one inside Pillow is held out."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

TRAINING = {
    "matplotlib": (
        "mpl-data/fonts/ttf",
        "DejaVuSans.ttf DejaVuSans-Bold.ttf DejaVuSansMono.ttf DejaVuSansMono-Bold.ttf DejaVuSerif.ttf "
        "DejaVuSerif-Bold.ttf STIXGeneral.ttf STIXGeneralBol.ttf",
    ),
    "font_source_sans_pro": ("files", "SourceSansPro-Regular.ttf SourceSansPro-Semibold.ttf SourceSansPro-Bold.ttf"),
    "font_source_serif_pro": ("files", "SourceSerifPro-Regular.ttf SourceSerifPro-Bold.ttf"),
    "font_hanken_grotesk": (
        "files",
        "HankenGrotesk-Regular.otf HankenGrotesk-Medium.otf HankenGrotesk-SemiBold.otf HankenGrotesk-Bold.otf",
    ),
    "font_manrope": ("files", "Manrope-Regular.ttf Manrope-Medium.ttf Manrope-Bold.ttf"),
    "font_caladea": ("files", "Caladea-Regular.ttf Caladea-Bold.ttf"),
}
"""Package: the folder in it, and the files."""

Font = ImageFont.FreeTypeFont


def package_folder(package: str) -> Path:
    """The folder a package was installed to, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"fonts of {package!r} are missing: pip install -r models/demo/requirements-train.txt")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def training_fonts() -> tuple[str, ...]:
    """Paths of all fonts that may be trained on."""
    return tuple(
        str(package_folder(package) / folder / name)
        for package, (folder, names) in TRAINING.items()
        for name in names.split()
    )


@cache
def training_font(path: str, size: int) -> Font:
    """A training font at a size in pixels."""
    return ImageFont.truetype(path, size)


@cache
def held_out_font(size: int) -> Font:
    """Aileron, which Pillow carries inside: never trained on, and nothing to install."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType")
    return font

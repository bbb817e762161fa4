"""One colour that somebody chose, made fit to be read on light and on dark (WCAG 2.2, 1.4.3: contrast 4.5 to 1)."""

from __future__ import annotations

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
ENOUGH = 4.5
# what lines and letters of the colour stand on, the one of lowest contrast in page.css: light, dark
LIGHT: Colour = (0xF0, 0xF0, 0xEC)
DARK: Colour = (0x2B, 0x2D, 0x30)
STEPS = 50  # from the colour to black or white


def stylesheet(colour: str) -> str:
    """The variables that page.css draws with: `--accent` to fill, `--on-accent` on it, `--accent-ink` for letters."""
    accent = parsed(colour)
    on_accent = max(BLACK, WHITE, key=lambda ink: contrast(ink, accent))
    light, dark = (_hex(readable(accent, on=ground)) for ground in (LIGHT, DARK))
    return (
        f":root {{\n  --accent: {_hex(accent)};\n  --on-accent: {_hex(on_accent)};\n  --accent-ink: {light};\n}}\n\n"
        f"@media (prefers-color-scheme: dark) {{\n  :root {{\n    --accent-ink: {dark};\n  }}\n}}\n"
    )


def parsed(colour: str) -> Colour:
    """`#rrggbb` as red, green and blue."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def readable(colour: Colour, on: Colour) -> Colour:
    """The nearest to `colour`, on its way to black or white, that can be read on a ground."""
    end = max(BLACK, WHITE, key=lambda ink: contrast(ink, on))
    ways = (_between(colour, end, step / STEPS) for step in range(STEPS + 1))
    return next(way for way in ways if contrast(way, on) >= ENOUGH)


def contrast(one: Colour, other: Colour) -> float:
    """From 1 to 21, as WCAG defines it."""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Colour) -> float:
    red, green, blue = (
        level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4
        for level in (channel / 255 for channel in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _between(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _hex(colour: Colour) -> str:
    return f"#{bytes(colour).hex()}"

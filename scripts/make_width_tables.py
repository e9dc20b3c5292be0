#!/usr/bin/env python3
"""Prints main/display_width_ranges.cpp: the code points that take no column or two, from Python's Unicode tables.

  scripts/make_width_tables.py > main/display_width_ranges.cpp
"""
import unicodedata


def width(c):
    category = unicodedata.category(chr(c))
    if category in ("Mn", "Me") or (category == "Cf" and c != 0xAD) or 0x1160 <= c <= 0x11FF:
        return 0
    return 2 if unicodedata.east_asian_width(chr(c)) in "WF" else 1


def ranges(wanted):
    out, begin = [], None
    for c in range(0x110001):
        inside = c < 0x110000 and width(c) == wanted
        if inside and begin is None:
            begin = c
        if not inside and begin is not None:
            out.append((begin, c - 1))
            begin = None
    return out


print(f"// Made by scripts/make_width_tables.py from Unicode {unicodedata.unidata_version}: do not edit.")
print("// clang-format off")
print('#include "main/display_width_ranges.h"\n\nnamespace fathom {\n')
for name, wanted in (("kZeroWidthRanges", 0), ("kWideRanges", 2)):
    rows = ranges(wanted)
    print(f"static constexpr std::array<WidthRange, {len(rows)}> {name}Table = {{{{")
    for i in range(0, len(rows), 6):
        print("    " + ", ".join(f"{{0x{a:04x}, 0x{b:04x}}}" for a, b in rows[i:i + 6]) + ",")
    print("}};\n" + f"const std::span<const WidthRange> {name} = {name}Table;\n")
print("}  // namespace fathom")

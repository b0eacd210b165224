"""What a file says beside its pixels is in results too, as far as their format holds it."""

import io
import struct

import numpy as np
import pytest
from helpers.data import make_scene
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from src.pictures.formats import IMAGE_FORMATS
from src.pictures.images import open_image, read_image, upright
from src.pictures.metadata import upright_exif
from src.pictures.render import MODES, Style, encode, render

PIXELS = Image.fromarray(make_scene(2, 80, 60)[0])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://'
    b'ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="darkroom" '
    b'tiff:Orientation="6"><exif:PixelXDimension>80</exif:PixelXDimension><xmp:Thumbnails><rdf:Alt>'
    b"c2VjcmV0</rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF></x:xmpmeta>"
)
THUMBNAIL = b"\xff\xd8 what was behind the object \xff\xd9"
SOUND = [".png", ".jpg", ".webp", ".tif", ".avif"]


def blob(order="<", thumbnail=THUMBNAIL, orientation=6):
    """EXIF as cameras write it, by the format's definition: texts that are not ASCII, GPS, a
    maker's note, a thumbnail."""
    inner = [
        (36864, 7, b"0232"),
        (0x927C, 7, b"maker's own note"),
        (0xA002, 3, 80),
        (0xA003, 4, 60),
    ]
    position = [(1, 2, b"N\0"), (2, 5, struct.pack(order + "6I", 48, 1, 30, 1, 0, 1))]
    main = [
        (271, 2, b"Maker\0"), (274, 3, orientation), (282, 5, struct.pack(order + "2I", 300, 1)),
        (283, 5, struct.pack(order + "2I", 300, 1)), (296, 3, 2), (315, 2, "Müller\0".encode()),
        (33432, 2, "© me\0".encode()), (34665, 4, inner), (34853, 4, position),
    ]  # fmt: skip
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8))
    link = _append(data, main, order)
    if thumbnail:
        struct.pack_into(order + "I", data, link, len(data))
        _append(data, [(513, 4, thumbnail), (514, 4, len(thumbnail))], order)
    return b"Exif\0\0" + bytes(data)


def _append(data, tags, order):
    """A directory at the end, and what it points to; returns where its link to the next one is."""
    at = len(data)
    data += struct.pack(order + "H", len(tags)) + bytes(12 * len(tags) + 4)
    for i, (tag, kind, value) in enumerate(tags):
        place, count = at + 2 + 12 * i, 1
        if isinstance(value, int):
            packed = struct.pack(order + ("HH" if kind == 3 else "I"), *[value, 0][: 5 - kind])
        else:
            if not isinstance(value, list) and kind != 4:
                count = len(value) // 8 if kind == 5 else len(value)
            packed = struct.pack(order + "I", len(data))
            if isinstance(value, list):
                _append(data, value, order)
            elif len(value) <= 4 and kind != 4:
                packed = value.ljust(4, b"\0")
            else:
                data += value + bytes(len(value) % 2)
        data[place : place + 12] = struct.pack(order + "HHI", tag, kind, count) + packed
    return at + 2 + 12 * len(tags)


def sources():
    """The same photo in each format, on its side."""
    texts = PngInfo()
    texts.add_text("Comment", "hello")
    texts.add_text("parameters", "a horse, € 5")
    texts.add_itxt("XML:com.adobe.xmp", XMP.decode())
    keep = {"exif": blob(), "icc_profile": SRGB}
    yield ".jpg", {**keep, "dpi": (300, 300), "comment": b"hello", "xmp": XMP}
    yield ".png", {**keep, "dpi": (300, 300), "pnginfo": texts}
    yield ".webp", {**keep, "xmp": XMP}
    yield ".avif", {**keep, "xmp": XMP}


def saved(image, suffix, **options):
    file = io.BytesIO()
    encode(image, file, suffix) if not options else image.save(
        file, IMAGE_FORMATS[suffix].name, **options
    )
    file.seek(0)
    return file


def made(image, suffix, style):
    width, height = upright(image).size
    return saved(render(image, np.ones((height, width), np.float32), style), suffix)


@pytest.mark.parametrize("target", SOUND)
@pytest.mark.parametrize(("source", "options"), [*sources()], ids=lambda x: str(x)[:5])
@pytest.mark.parametrize("mode", ["cutout", "overlay", "background"])
def test_what_a_photo_says_is_kept(source, options, target, mode):
    if mode == "cutout" and target == ".jpg":
        pytest.skip("a JPEG takes no cut-outs")
    image = read_image(saved(PIXELS, source, **options))
    assert image.size == (60, 80)
    file = made(image, target, Style(mode, size=40))
    content, found = file.getvalue(), Image.open(file)
    found.load()
    exif = found.getexif()
    size = (30, 40)
    assert found.size == size == open_upright(file).size  # nobody turns it again
    assert exif[271] == "Maker" and exif.get(274, 1) == 1 and exif[282] == pytest.approx(300)
    if source != ".avif":  # Pillow itself, which writes the input, leaves ASCII of it
        assert "Müller".encode() in content and "© me".encode() in content
    inner, gps = exif.get_ifd(34665), exif.get_ifd(34853)
    assert (inner[0xA002], inner[0xA003]) == size
    assert inner[36864] == b"0232" and inner[0x927C] == b"maker's own note"
    assert gps[1] == "N" and tuple(gps[2]) == (48, 30, 0)
    assert b"behind the object" not in content and b"c2VjcmV0" not in content
    xmp = found.info.get("xmp")
    assert b'CreatorTool="darkroom"' in xmp and b'Orientation="6"' not in xmp
    assert b"<exif:PixelXDimension>30<" in xmp
    assert found.info["icc_profile"] == SRGB
    if target not in (".webp", ".avif"):
        assert found.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    if source in (".jpg", ".png") and target in (".jpg", ".png"):
        comment = found.info.get("comment", b"").decode() or found.info.get("Comment")
        assert comment == "hello"
    if source == target == ".png":
        assert found.info["parameters"] == "a horse, € 5"


def open_upright(file):
    file.seek(0)
    return read_image(file)


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.parametrize("mode", ["mask", "binary"])
def test_a_mask_has_the_resolution_alone(suffix, mode):
    (_, options), *_ = sources()
    image = read_image(saved(PIXELS, ".jpg", **options))
    file = made(image, suffix, Style(mode))
    found = Image.open(file)
    exif = dict(found.getexif())
    dpi = found.info.get("dpi") or (float(exif[282]), float(exif[283]))
    assert dpi == pytest.approx((300, 300), abs=0.01)
    assert not {271, 315, 33432, 34665, 34853} & set(exif) and "icc_profile" not in found.info
    for private in (b"Maker", b"darkroom", b"hello", b"me\0"):
        assert private not in file.getvalue()


@pytest.mark.parametrize("target", SOUND)
@pytest.mark.parametrize(("source", "options"), [*sources()], ids=lambda x: str(x)[:5])
@pytest.mark.parametrize("mode", MODES)
def test_stripped(source, options, target, mode):
    """Nothing is left but the profile, without which colours would be others."""
    if mode == "cutout" and target == ".jpg":
        pytest.skip("a JPEG takes no cut-outs")
    image = read_image(saved(PIXELS, source, **options))
    file = made(image, target, Style(mode, strip=True))
    found = Image.open(file)
    assert not {271, 282, 315, 34665, 34853} & set(found.getexif())
    left = {"exif", "xmp", "comment", "Comment", "parameters", "XML:com.adobe.xmp"}
    assert not left & set(found.info) and found.info.get("dpi", (1, 1)) == (1, 1)
    for private in (b"Maker", b"darkroom", b"hello", b"horse", b"behind"):
        assert private not in file.getvalue()
    assert ("icc_profile" in found.info) == (mode not in ("mask", "binary"))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", SOUND)
def test_from_tiff(order, suffix):
    """Whose own tags are its EXIF data; those of its pixels stay behind."""
    first = saved(PIXELS, ".jpg", exif=blob(order, orientation=1), dpi=(300, 300))
    tiff = made(read_image(first), ".tif", Style("overlay"))
    again = Image.open(made(read_image(tiff), suffix, Style("overlay", size=40)))
    exif = again.getexif()
    assert again.size == (40, 30) and exif[271] == "Maker"
    assert exif[315].encode("latin-1") == "Müller".encode()
    assert exif.get_ifd(34853)[1] == "N" and exif.get_ifd(34665)[0xA002] == 40
    if suffix != ".tif":
        assert not {258, 259, 262, 273, 277, 278, 279} & set(exif)
    again.load()


def test_from_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.from_pillow(PIXELS).save(tmp_path / "a.heic", exif=blob(), xmp=XMP)
    image = open_image(tmp_path / "a.heic")
    found = Image.open(made(image, ".png", Style("cutout")))
    assert found.getexif()[271] == "Maker" and found.getexif().get(274, 1) == 1
    assert found.getexif().get_ifd(34853)[1] == "N" and b"darkroom" in found.info["xmp"]
    assert found.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_what_a_jpeg_cannot_hold_is_left_out():
    """Its segments end at 64 KB."""
    image = PIXELS.copy()
    exif = Image.Exif()
    exif[271] = "M" * 70000
    image.info |= {"exif": exif.tobytes(), "xmp": b"x" * 70000, "comment": b"c" * 70000}
    found = Image.open(made(image, ".jpg", Style("overlay")))
    assert found.size == PIXELS.size and 271 not in found.getexif()
    assert Image.open(made(image, ".png", Style("overlay"))).getexif()[271] == "M" * 70000


@pytest.mark.parametrize("order", "<>")
def test_thumbnails_are_blotted_out_wherever_they_are(order):
    data = blob(order) + b"after it"
    found = upright_exif(data, (30, 40))
    assert b"behind" not in found and found.endswith(b"after it") and len(found) == len(data)
    assert b"behind" not in upright_exif(blob(order), (30, 40))
    assert upright_exif(found, (30, 40)) == found


@pytest.mark.parametrize("prefix", [b"xmp", b"xap"])
def test_thumbnails_without_an_end(prefix):
    """A small upload must not hold a server up: a search from each of these would take hours."""
    whole = b"<%b:Thumbnails>secret</%b:Thumbnails>" % (prefix, prefix)
    many = b"<%b:Thumbnails " % prefix * 250_000
    image = PIXELS.copy()
    image.info["xmp"] = b"a" + whole + b"b" + whole + b"c" + many
    found = Image.open(made(image, ".webp", Style("overlay")))
    assert found.info["xmp"] == b"abc" + many


def test_a_picture_in_a_million_strips():
    """Each of which is the whole file: to blot out one after the other would take hours, too."""
    count, lists = 1_000_000, 8 + 2 + 3 * 12 + 4
    start = lists + 8 * count
    text = "<HHII"
    data = b"II*\0" + struct.pack("<IH", 8, 3) + struct.pack(text, 271, 2, 4, 0x64636261)
    data += struct.pack(text, 273, 4, count, lists)
    data += struct.pack(text, 279, 4, count, lists + 4 * count) + bytes(4)
    places, lengths = np.full(count, start, "<u4"), np.full(count, 7000, "<u4")
    places[::2] += 10
    data += places.tobytes() + lengths.tobytes() + b"secret" * 2000
    found = upright_exif(b"Exif\0\0" + data, (30, 40))[6:]
    assert found[start:] == bytes(7010) + (b"secret" * 2000)[7010:] and b"abcd" in found[:lists]


def test_many_tags_that_lead_nowhere():
    """They are removed, and the others and the link stay."""
    bad, good = (struct.pack("<HHII", n, 4, 9, 1 << 31) for n in (1, 2)), (271, 2, 4, 0x64636261)
    tags = b"".join([next(bad), struct.pack("<HHII", *good), next(bad)])
    data = upright_exif(b"II*\0" + struct.pack("<IH", 8, 3) + tags + bytes(4), (30, 40))[6:]
    assert data[8:26] == struct.pack("<HHHIII", 1, *good, 0) and data[26:] == bytes(24)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_tag_of_the_wrong_type_spoils_no_photo(suffix, orientation):
    """Pillow turns it, and could not write the tag."""
    exif = bytearray(blob(orientation=orientation))
    at = exif.index(struct.pack("<HH", 282, 5))
    exif[at + 2 : at + 4] = struct.pack("<H", 2)  # a resolution that is a text
    image = read_image(saved(PIXELS, suffix, exif=bytes(exif), xmp=XMP))
    plain = read_image(saved(PIXELS, suffix, exif=blob(orientation=orientation)))
    assert np.array_equal(image, plain) and image.size == ((80, 60), (60, 80))[orientation > 4]
    assert np.array_equal(upright(image), plain)  # nobody turns it again
    assert Image.open(made(image, ".png", Style("overlay"))).getexif()[271] == "Maker"


def test_an_orientation_that_xmp_alone_gives():
    image = read_image(saved(PIXELS, ".jpg", xmp=XMP))
    assert image.size == (60, 80) and upright(image).size == (60, 80)


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 1), (1e9, 1e9), (-3, 2), "no", (72,)])
@pytest.mark.parametrize("suffix", SOUND)
def test_resolutions_that_are_none(dpi, suffix):
    image = PIXELS.copy()
    image.info["dpi"] = dpi
    assert Image.open(made(image, suffix, Style("overlay"))).size == PIXELS.size


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # scripts do not show them either
@pytest.mark.parametrize("suffix", SOUND)
def test_garbled_data_spoils_no_result(suffix):
    """Each byte may be wrong, and the end missing."""
    rng, good = np.random.default_rng(0), blob()
    for turn in range(60):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 1 + turn % 5):
            bad[place] = rng.integers(256)
        image = PIXELS.copy()
        image.info["exif"] = bytes(bad[: len(bad) if turn % 2 else rng.integers(len(bad))])
        result = made(image, suffix, Style("overlay", size=20))
        expected = (20, 15) if upright(image).size == PIXELS.size else (15, 20)
        assert Image.open(result).size == expected


@pytest.mark.filterwarnings("ignore:Metadata Warning")  # Pillow's, which scripts do not show
@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.parametrize("tag", [271, 315, 33432])
@pytest.mark.parametrize("kind", range(3, 13))
def test_texts_of_another_type_spoil_no_result(suffix, tag, kind):
    exif = blob().replace(struct.pack("<HH", tag, 2), struct.pack("<HH", tag, kind))
    image = PIXELS.copy()
    image.info["exif"] = exif
    assert Image.open(made(image, suffix, Style("overlay"))).size == (60, 80)


def test_users_own_images_are_left_alone():
    (_, options), *_ = sources()
    image = Image.open(saved(PIXELS, ".jpg", **options))
    image.load()
    before = dict(image.info)
    made(upright(image), ".png", Style("overlay"))
    assert image.info == before


def swapped_profile():
    """sRGB with the primaries of red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for place in range(128, 128 + 12 * int.from_bytes(data[128:132]), 4):
        name = bytes(data[place : place + 4])
        if name in (b"rXYZ", b"bXYZ"):
            data[place : place + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(data)


def test_backgrounds_are_seen_in_their_own_colours():
    """Whatever profiles they and the image have."""
    swapped, empty = swapped_profile(), np.zeros((30, 40), np.float32)

    def seen(background, profile):
        image = Image.new("RGB", (40, 30), "lime")
        image.info["icc_profile"] = profile
        result = render(image, empty, Style("background", background))
        assert result.info.get("icc_profile") == profile
        return result.getpixel((5, 5))

    tagged = Image.new("RGB", (8, 8), "red")
    tagged.info["icc_profile"] = swapped
    assert seen(tagged, swapped) == (255, 0, 0), "of the same space"
    blue, red = np.array(seen(tagged, None)), np.array(seen("red", swapped))
    assert np.abs(blue - (0, 0, 255)).max() < 4, "it looks blue"
    assert np.abs(red - (0, 0, 255)).max() < 4, "blue is seen as red there"
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.info["icc_profile"] = swapped
    assert np.abs(np.array(seen(clear, None)) - 255).max() < 4, "on white"

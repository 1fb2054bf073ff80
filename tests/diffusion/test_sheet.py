import pytest
from PIL import Image

from raft_diffusion.diffusion.sheet import grid

RED, LIME, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def picture(colour, width=64, height=64):
    return Image.new("RGB", (width, height), colour)


def test_pictures_lie_in_rows_and_columns_without_labels():
    sheet = grid([[picture("red", 200, 100), picture("lime", 200, 100)], [picture("lime", 200, 100)]])
    assert sheet.size == (404, 204)
    assert [sheet.getpixel(at) for at in ((100, 50), (202, 50), (304, 50), (100, 102), (100, 154), (304, 154))] == [
        *(RED, WHITE, LIME),
        *(WHITE, LIME, WHITE),
    ]


@pytest.mark.parametrize(("side", "shown"), [(64, 128), (50, 150), (128, 128), (512, 512), (1, 128)])
def test_small_pictures_are_enlarged_by_a_whole_factor(side, shown):
    assert grid([[picture("red", side, side)]]).size == (shown, shown)


def test_enlarging_does_not_smooth():
    image = picture("red", 2, 1)
    image.putpixel((1, 0), LIME)
    sheet = grid([[image]])
    assert {sheet.getpixel((x, 10)) for x in range(sheet.width)} == {RED, LIME}


def ink(sheet, box):
    return any(pixel != WHITE for pixel in sheet.crop(box).get_flattened_data())


def test_labels_stand_beside_and_above():
    rows = [[picture("red"), picture("red")], [picture("lime"), picture("lime")]]
    sheet = grid(rows, row_labels=["cat", "a long prompt that needs more than one line " * 9], column_labels=["1", "2"])
    top, left = sheet.height - 260, sheet.width - 260
    assert 20 < top < 60 and 100 < left <= 176
    assert ink(sheet, (0, top, left, top + 128)) and ink(sheet, (0, top + 132, left, top + 260))
    assert ink(sheet, (left, 0, left + 128, top)) and ink(sheet, (left + 132, 0, sheet.width, top))
    assert not ink(sheet, (0, top + 128, left, top + 132)) and not ink(sheet, (0, 0, left, top))


def test_a_long_word_is_cut():
    sheet = grid([[picture("red")]], row_labels=["x" * 3000], column_labels=["y" * 3000])
    assert sheet.width <= 128 + 176


def test_the_number_of_labels_must_fit():
    with pytest.raises(ValueError, match="a grid of 1 rows needs as many labels, not 2"):
        grid([[picture("red")]], row_labels=["a", "b"])
    with pytest.raises(ValueError, match="a grid of 1 columns needs as many labels, not 2"):
        grid([[picture("red")]], column_labels=["a", "b"])
    with pytest.raises(ValueError, match="at least one picture"):
        grid([])

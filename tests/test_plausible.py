"""Scans that cannot be a CT are refused, doubtful ones named, and right ones cause no word."""

import numpy as np
import pytest
from scipy import ndimage

from spinejax import plausible
from spinejax.errors import InputError
from spinejax.io import scanfile
from spinejax.volume import Volume


def body(shape=(64, 64, 24), seed=0, air=True):
    """A body with fat, muscle, lungs and a column of bone; in air, or a crop from within it."""
    rng = np.random.default_rng(seed)
    scale = 1.0 if air else 1.6
    u, v, w = (np.linspace(-1, 1, n) for n in shape)
    x, y, z = np.meshgrid(u * scale / 0.85, v * scale, w, indexing="ij", sparse=True)
    radius = (
        np.sqrt(x**2 + (1.3 * y) ** 2) + 0 * z
        if air
        else np.sqrt((x / 2) ** 2 + (y / 2) ** 2) + 0 * z
    )
    hu = np.where(radius < 0.95, -100.0, -1000.0)
    hu[radius < 0.75] = 55
    if air:
        hu[(np.sqrt((np.abs(x) - 0.4) ** 2 + (y + 0.1) ** 2) < 0.2) & (z > 0)] = -850
    spine = np.sqrt(x**2 + (y - 0.35) ** 2) + 0 * z
    hu[spine < 0.22] = 700
    hu[spine < 0.18] = 200
    hu = ndimage.gaussian_filter(hu, 0.7) + rng.normal(0, 12, hu.shape)
    return np.maximum(np.rint(hu), -1024)


def read(values):
    """Values as reading leaves them: fillers, NaN and what lies below air are air."""
    values = np.asarray(values, np.float32)
    return np.where(np.isfinite(values) & (values >= -1024), values, -1024).astype(np.float32)


def check(values, spacing=(4.0, 4.0, 4.0)):
    return plausible.check(
        Volume(read(values), np.diag([-spacing[0], -spacing[1], spacing[2], 1])), "a"
    )


WHOLE, CROP = body(), body(air=False)

RIGHT = {
    "as it is": lambda hu: hu,
    "fillers": lambda hu: np.where(hu < -990, -3024, hu),
    "NaN outside": lambda hu: np.where(hu < -990, np.nan, hu),
    "contrast": lambda hu: np.where((hu > 30) & (hu < 90), hu + 120, hu),
    "low dose": lambda hu: hu + np.random.default_rng(1).normal(0, 90, hu.shape),
    "smooth": lambda hu: ndimage.gaussian_filter(hu, 1.5),
    "clipped at 3071": lambda hu: np.clip(hu * np.where(hu > 650, 6, 1), -1024, 3071),
    "metal of 30000": lambda hu: np.where(hu > 735, 30_000, hu),
    "clamped by us": lambda hu: np.clip(hu, -1000, 800),
    "denser by 10 %": lambda hu: hu * 1.1,
}


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("hu", [WHOLE, CROP], ids=["whole", "crop"])
def test_a_right_ct_causes_no_word(hu, case):
    assert check(RIGHT[case](hu)) == []


@pytest.mark.parametrize("side", [6, 12, 20])
def test_crops_of_a_ct_cause_no_word(side):
    rng = np.random.default_rng(side)
    for hu in (WHOLE, CROP):
        for _ in range(10):
            start = [int(rng.integers(0, n - side + 1)) for n in hu.shape]
            crop = hu[tuple(slice(i, i + side) for i in start)]
            if (crop > -500).mean() > 0.05:
                assert check(crop, (1.0, 1.0, 1.0)) == []


def scaled(hu, low, high, top):
    return top * np.clip((hu - low) / (high - low), 0, 1)


def rank(hu):
    return np.argsort(np.argsort(hu, axis=None)).reshape(hu.shape) / hu.size


def mr(hu):
    """Fat and marrow bright, bone and air dark, and the noise of magnitudes."""
    signal = np.interp(hu, (-1000, -300, -100, -20, 55, 200, 700), (0, 40, 700, 300, 250, 500, 60))
    noise = np.random.default_rng(2).normal(0, 12, (2, *hu.shape))
    return np.rint(np.hypot(signal + noise[0], noise[1]))


DOUBTFUL = {
    "HU + 1024": (lambda hu: hu + 1024, "HU + 1024"),
    "HU + 1000": (lambda hu: hu + 1000, "HU + 1024"),
    "HU + 32768": (lambda hu: hu + 32_768, "no|above 450"),
    "unsigned": (lambda hu: hu % 65_536, "65536"),
    "wrong sign": (lambda hu: -hu, "sign"),
    "half": (lambda hu: hu / 2, "nothing lies near"),
    "times 10": (lambda hu: 10 * hu, "multiplied"),
    "times 16": (lambda hu: 16 * hu, "multiplied"),
    "0 to 255": (lambda hu: np.rint(scaled(hu, -1024, 1000, 255)), "nothing lies near -1000"),
    "a picture": (lambda hu: np.rint(scaled(hu, -160, 240, 255)), "picture"),
    "0 to 4095": (lambda hu: np.rint(scaled(hu, -1024, 1500, 4095)), "nothing lies near|above 450"),
    "soft window": (lambda hu: np.clip(hu, -160, 240), "clipped at -160"),
    "no air": (lambda hu: np.maximum(hu, 0), "nothing lies near -1000"),
    "bone clipped": (lambda hu: np.clip(hu, -1000, 300), "clipped at 300"),
    "MR": (mr, "MR"),
    "PET": (lambda hu: np.where(hu > -500, 2000 + 20 * hu.clip(-90, 90), 0), "MR"),
    "air alone": (lambda hu: hu * 0.02 - 1000, "nothing but air"),
    "HU - 1024": (lambda hu: hu - 1024, "HU - 1024"),
    "HU - 1000": (lambda hu: hu - 1000, "HU - 1024"),
    "air masked to 0": (lambda hu: np.where(hu < -300, 0, hu), "exactly 0"),
    "air masked to -50": (lambda hu: np.where(hu < -300, -50, hu), "exactly -50"),
    "padded with 0": (lambda hu: np.pad(hu[8:-8], ((8, 8), (0, 0), (0, 0))), "exactly 0"),
    "equalised": (lambda hu: 2000 * rank(hu) - 1000, "equally frequent"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_intensities_that_are_no_hu_are_named(case):
    change, pattern = DOUBTFUL[case]
    (doubt,) = check(change(WHOLE))
    assert "\n" not in doubt
    assert any(word in doubt for word in pattern.split("|")), doubt


GREY = {
    "256 values": lambda hu: np.rint(scaled(hu, -1024, 3071, 255)),
    "0 to 1000": lambda hu: scaled(hu, hu.min(), hu.max(), 1000),
    "gamma": lambda hu: 255 * scaled(hu, -1024, 3071, 1) ** 0.5,
    "equalised": lambda hu: 255 * rank(hu),
    "inverted": lambda hu: 255 - scaled(hu, -1024, 1500, 255),
    "gradient": lambda hu: np.abs(np.gradient(hu, axis=0)),
}
"""Pictures of a crop of tissue, where no air tells their unit."""


@pytest.mark.parametrize(
    "case",
    ["HU + 1024", "HU + 32768", "unsigned", "times 16", "soft window", "HU - 1024", *GREY],
)
def test_intensities_of_a_crop_without_air_are_named(case):
    change = GREY.get(case) or DOUBTFUL[case][0]
    (doubt,) = check(change(CROP))
    assert "\n" not in doubt


def organs(shape):
    """Labels of 117 organs, each a block, in background."""
    blocks = np.zeros((4, 5, 6))
    blocks.flat[:117] = np.arange(1, 118)
    whole = np.kron(blocks, np.ones((12, 10, 4)))
    return np.pad(whole, [(0, n - m) for n, m in zip(shape, whole.shape, strict=True)])


IMPOSSIBLE = {
    "constant": (lambda hu: 0 * hu, "every voxel is 0"),
    "mask": (lambda hu: (hu > 150) * 20, "label map"),
    "labels": (lambda hu: np.where(hu > 650, 21, np.where(hu > 150, 20, 0)), "label map"),
    "organs": (lambda hu: organs(hu.shape), "label map"),
    "mask with noise of floats": (lambda hu: (hu > 150) * 19.9999, "label map"),
    "mask of thousands": (lambda hu: (hu > 150) * 1000, "label map"),
    "0 to 1": (lambda hu: scaled(hu, -1000, 1000, 1.0), "between 0 and 0.*probabilities"),
    "-1 to 1": (lambda hu: scaled(hu, -1000, 1000, 2.0) - 1, "between -1 and 0"),
    "standardised": (lambda hu: (hu - hu.mean()) / hu.std(), "rescaled"),
    "per mille": (lambda hu: hu / 1000, "rescaled"),
    "percent": (lambda hu: hu / 100, "rescaled"),
    "1e33": (lambda hu: hu * 1e30, "values reach"),
    "times 1000": (lambda hu: hu * 1000, "values reach"),
    "1e-20": (lambda hu: hu * 1e-23, "rescaled"),
    "SUV": (lambda hu: np.where(hu > -500, 2 + hu.clip(-90, 90) / 50, 0), "rescaled"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_a_ct_is_refused(case):
    change, pattern = IMPOSSIBLE[case]
    with pytest.raises(InputError, match=pattern) as error:
        check(change(WHOLE))
    assert str(error.value).startswith("a: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spacing", "pattern"),
    [
        ((350, 350, 350), "micrometres"),
        ((0.8, 0.8, 350), "not those of a CT"),
        ((1e-6, 1, 1), "not those of a CT"),
        ((0.0008, 0.0008, 0.002), "metres"),
        ((0.1, 0.1, 12), "100 times another"),
        ((20, 20, 120), "not those of a CT"),
        ((5.0, 5.0, 24.0), None),
        ((24, 24, 24), "m wide|field of view"),
        ((0.5, 0.5, 0.5), "25 mm wide"),
        ((0.3, 0.3, 13), "15 mm wide"),
        ((16, 16, 1), "field of view"),
        ((0.2, 0.2, 9), "longer than wide"),
        ((5, 5, 10), None),
        ((1.2, 1.2, 5), None),
    ],
)
def test_voxel_sizes(spacing, pattern):
    try:
        found = check(CROP if spacing[2] == 9 else WHOLE, spacing)
    except InputError as error:
        found = [str(error)]
    if pattern is None:
        assert found == []
    else:
        assert any(word in found[0] for word in pattern.split("|")), found


def test_a_scan_longer_than_any_table_is_refused():
    with pytest.raises(InputError, match=r"2\.88 m long"):
        check(np.concatenate([CROP] * 5, axis=2), (4, 4, 24))


def test_vessels_in_a_crop_of_the_lung_are_no_body():
    lung = np.random.default_rng(0).normal(-850, 30, (40, 40, 40))
    lung[18:22, 18:22] += 890
    assert check(lung, (1.0, 1.0, 1.0)) == []


def test_the_likeliest_reason_for_nothing_found():
    def why(values, side=4.0):
        return plausible.why_nothing(Volume(read(values), np.diag([-side, -side, side, 1])))

    for named_before in (why(WHOLE + 1024), why(WHOLE, 0.5)):
        assert named_before is None
    assert "no spine" in why(WHOLE)
    assert "LPS" in why(WHOLE)


def test_real_scans_and_crops_of_them_cause_no_word(real_data):
    rng = np.random.default_rng(0)
    for path in sorted(real_data.rglob("*ct.nii.gz")):
        scan = scanfile.read_volume(path)
        assert plausible.check(scan, "real") == []
        for side in (16, 32, 64, 96):
            for _ in range(10):
                start = [int(rng.integers(0, max(1, n - side))) for n in scan.shape]
                crop = scan.array[tuple(slice(i, i + side) for i in start)]
                if (crop > -500).mean() > 0.05:
                    assert plausible.check(Volume(crop, scan.affine), "crop") == []

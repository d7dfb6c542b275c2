"""Real label maps, read once."""

import numpy as np
import pytest

from spinejax import geometry
from spinejax.io import scanfile
from tests.support.label_maps import FILES

_READ = {}


@pytest.fixture
def real(real_data):
    """name -> (canonical VerSe ids, cut to what is there along x and y; spacing)."""

    def read(name):
        if name not in _READ:
            volume = scanfile.read_labels(real_data / FILES[name])
            array = volume.array
            spacing = volume.spacing_mm
            if name == "gl003":  # 0.29 mm
                array, spacing = array[::4, ::4], (4 * spacing[0], 4 * spacing[1], spacing[2])
            x, y, _ = geometry.bounding_box(array > 0)
            _READ[name] = np.ascontiguousarray(array[x, y]), spacing
        array, spacing = _READ[name]
        return array.copy(), spacing

    return read

"""What pydicom and highdicom say is dropped."""

import threading
import warnings

from spinejax.io.dicom_fields import quiet
from tests.support.dicom_files import PATIENT


def test_a_thread_stays_quiet_when_another_ends():
    first, second = threading.Event(), threading.Event()

    def work():
        with quiet():
            first.set()
            second.wait(0.2)

    other = threading.Thread(target=work)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        other.start()
        first.wait()
        with quiet():
            second.set()
            other.join()
            warnings.warn(PATIENT, stacklevel=1)
        warnings.warn("afterwards", stacklevel=1)
    assert [str(one.message) for one in said] == ["afterwards"]

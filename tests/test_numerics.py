"""The arithmetic of the kernels: accuracy of every function, alike in every lane, and known random numbers."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rbc_warp.economy import reference
from rbc_warp.warpdrive import build


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    library = tmp_path_factory.mktemp("probe") / "probe.so"
    source = Path(__file__).with_name("numerics_probe.cpp")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = [build.find_host_compiler(), *build.HOST_FLAGS, *warnings, "-I", build.SOURCES, source, "-o", library]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def apply(probe: ctypes.CDLL, name: str, x: np.ndarray, parameter: float = 0.0) -> np.ndarray:
    x = np.ascontiguousarray(x, np.float32)
    out = np.full_like(x, np.nan)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, out))
    getattr(probe, f"probe_{name}")(len(x), next(pointers), ctypes.c_float(parameter), next(pointers))
    return out


def ulps(got: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Error in units of the last place of the float32 nearest to the truth."""
    return np.abs(got - truth) / np.spacing(np.abs(truth).astype(np.float32)).astype(np.float64)


def many(low: float, high: float, size: int = 16 * 4096) -> np.ndarray:
    """Numbers over many magnitudes, float32."""
    return np.geomspace(low, high, size).astype(np.float32)


@pytest.mark.parametrize("crra", [0.0, 0.1, 0.3, 0.5, 0.9, 0.999, 1.0 - 2**-22, 1.0, 1.001, 1.5, 2.0, 5.0, 20.0])
def test_utility_is_accurate(probe: ctypes.CDLL, crra: float) -> None:
    units = np.concatenate([[0.0], np.linspace(0, 10, 5001), many(1e-30, 1e3)]).astype(np.float32)
    crra = float(np.float32(crra))
    got = apply(probe, "utility", units, crra)
    truth = reference.utility(units.astype(np.float64), crra)
    assert ulps(got, truth).max() <= 10.0
    assert got[0] == 0.0 and np.all(np.diff(got[1:5002]) > -1e-6)


FUNCTIONS = {
    "exp": (np.exp, np.concatenate([-many(1e-6, 86.0), many(1e-6, 87.0)]), 1.0),
    "expm1": (np.expm1, np.concatenate([-many(1e-30, 86.0), many(1e-30, 87.0)]), 2.0),
    "log": (np.log, many(1e-37, 1e38), 2.0),
    "log1p": (np.log1p, many(1e-37, 1e38), 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_accurate_and_alike_in_every_lane(probe: ctypes.CDLL, name: str) -> None:
    function, x, bound = FUNCTIONS[name]
    got = apply(probe, name, x)
    error = ulps(got, function(x.astype(np.float64)))
    assert error.max() <= bound, f"{error.max():.2f} ulp at {x[np.argmax(error)]}"
    np.testing.assert_array_equal(apply(probe, f"{name}_lanes", x), got)


def test_functions_are_total(probe: ctypes.CDLL) -> None:
    """No input that a diverging run could produce makes them overflow the exponent's bits."""
    wild = np.array([-np.inf, -1e30, -100.0, 100.0, 1e30, np.inf] + [0.0] * 10, np.float32)
    for name in ("exp", "expm1", "exp_lanes", "expm1_lanes"):
        assert np.isfinite(apply(probe, name, wild)).all(), name
    np.testing.assert_array_equal(apply(probe, "power", np.array([0.0, 0.0, -1.0, 5.0]), 0.5)[:3], [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(apply(probe, "power", np.array([0.0, 7.0]), 0.0), [1.0, 1.0])  # as 0.0**0.0


@pytest.mark.parametrize("exponent", [0.2, 0.4, 0.5, 0.8, 1.0])
def test_power_is_accurate(probe: ctypes.CDLL, exponent: float) -> None:
    x = many(1e-3, 1e12)
    truth = x.astype(np.float64) ** float(np.float32(exponent))
    np.testing.assert_allclose(apply(probe, "power", x, exponent), truth, rtol=4e-6)


# Known answers of Philox4x32-10 from the Random123 distribution: counter, key, result.
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX)
def test_philox_gives_the_known_answers(probe: ctypes.CDLL, counter: str, key: str, expected: str) -> None:
    words = [np.array([int(word, 16) for word in text.split()], np.uint32) for text in (counter, key, expected)]
    out = np.zeros(8, np.uint32)
    probe.probe_philox(*(array.ctypes.data_as(ctypes.c_void_p) for array in (words[0], words[1], out)))
    np.testing.assert_array_equal(out[:4], words[2])
    np.testing.assert_array_equal(out[4:], words[2])


def test_uniforms_lie_in_the_unit_interval(probe: ctypes.CDLL) -> None:
    words = np.array([0, 255, 256, 2**31, 2**32 - 1], np.uint32)
    out = np.zeros(5, np.float32)
    probe.probe_uniform(5, *(array.ctypes.data_as(ctypes.c_void_p) for array in (words, out)))
    np.testing.assert_array_equal(out, np.array([0.0, 0.0, 2**-24, 0.5, 1.0 - 2**-24], np.float32))

"""MVSNet's files: a true camera, the relation of both sizes of K, PFM to the last bit, damage by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dtu_tree import views_in_mm, write_camera, write_pairs, write_pfm

from hess_plugin.datasets.dtu_files import read_camera, read_npy_depth, read_pfm, read_view_list
from hess_plugin.errors import InputError

# View 0 of the training tree, as published.
TRUE_CAMERA = """extrinsic
0.970263 0.00747983 0.241939 -191.02
-0.0147429 0.999493 0.0282234 3.28832
-0.241605 -0.030951 0.969881 22.5401
0.0 0.0 0.0 1.0

intrinsic
361.54125 0.0 82.900625
0.0 360.3975 66.383875
0.0 0.0 1.0

425.0 2.5
"""


class TestCamera:
    def test_true_file(self, tmp_path: Path) -> None:
        (tmp_path / "cam.txt").write_text(TRUE_CAMERA)
        extrinsics, intrinsics = read_camera(tmp_path / "cam.txt")
        assert extrinsics.shape == (3, 4)
        assert extrinsics[:, 3].tolist() == [-191.02, 3.28832, 22.5401]
        assert extrinsics[0, :3].tolist() == [0.970263, 0.00747983, 0.241939]
        # K of the test tree's 1600 x 1200 images: halved, cropped by (80, 44) to 640 x 512, quartered.
        fx, fy, cx, cy = 2892.33, 2883.18, 823.205, 619.071
        expected = [[fx / 8, 0, (cx / 2 - 80) / 4], [0, fy / 8, (cy / 2 - 44) / 4], [0, 0, 1]]
        np.testing.assert_allclose(intrinsics, expected, rtol=1e-12)

    @pytest.mark.parametrize("numbers", [2, 3, 4])
    def test_length_of_the_depth_line(self, tmp_path: Path, numbers: int) -> None:
        view = views_in_mm()[0]
        write_camera(tmp_path / "cam.txt", view, numbers)
        extrinsics, intrinsics = read_camera(tmp_path / "cam.txt")
        np.testing.assert_allclose(extrinsics, view.world_to_camera[:3], rtol=1e-8)
        np.testing.assert_allclose(intrinsics, view.K, rtol=1e-8)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (TRUE_CAMERA, "", "word 1 must be 'extrinsic', got 'the end of the file'"),
            ("extrinsic\n", "camera\n", "word 1 must be 'extrinsic', got 'camera'"),
            (" 22.5401", "", "extrinsic: could not convert string to float: 'intrinsic'"),
            ("22.5401", "22.54o1", "extrinsic: could not convert string to float: '22.54o1'"),
            ("22.5401", "nan", "extrinsic must hold finite numbers, got 'nan'"),
            ("\nintrinsic", "\nK", "word 18 must be 'intrinsic', got 'K'"),
            ("0.0 0.0 1.0\n\n425.0 2.5", "", "'intrinsic' has 6 numbers instead of 9"),
            ("425.0 2.5", "425.0", "the depth line must hold 2 to 4 numbers, got 1"),
            ("425.0 2.5", "425.0 2.5 192 902.5 7", "the depth line must hold 2 to 4 numbers, got 5"),
            ("425.0 2.5", "425.0 inf", "the depth line must hold finite numbers"),
            ("0.970263", "0.790263", "'extrinsic' is no rotation and translation"),
            ("-0.241605 -0.030951 0.969881", "0.241605 0.030951 -0.969881", "'extrinsic' is no rotation"),
            ("0.0 0.0 0.0 1.0", "0.0 0.0 0.0 2.0", "with last row 0 0 0 1"),
            ("361.54125 0.0", "361.54125 3.0", "'intrinsic' must be fx 0 cx"),
            ("361.54125", "-361.54125", "with fx, fy above 0"),
            ("0.0 0.0 1.0\n\n425", "0.0 0.0 2.0\n\n425", "'intrinsic' must be fx 0 cx"),
        ],
    )
    def test_damage(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        assert TRUE_CAMERA.count(old) == 1
        (tmp_path / "cam.txt").write_text(TRUE_CAMERA.replace(old, new))
        with pytest.raises(InputError, match=rf"cam\.txt'.*{message}"):
            read_camera(tmp_path / "cam.txt")

    def test_missing_or_binary(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read '.*cam\.txt'"):
            read_camera(tmp_path / "cam.txt")
        (tmp_path / "cam.txt").write_bytes(b"\xff\xd8\xff")
        with pytest.raises(InputError, match=r"cannot read '.*cam\.txt'"):
            read_camera(tmp_path / "cam.txt")


class TestViewList:
    def test_order_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "pair.txt").write_text("3\n2\n2 0 9.5 1 3.25 \n0\n1 2 9.5 \n1\n0 \n")
        assert read_view_list(tmp_path / "pair.txt") == [2, 0, 1]
        write_pairs(tmp_path / "pair.txt", views_in_mm())
        assert read_view_list(tmp_path / "pair.txt") == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is no list of views: list index out of range"),
            ("0\n", "0 views take 1 words, all ids different; got 1 words and 0 ids"),
            ("two\n", "is no list of views: invalid literal"),
            ("2\n0\n1 1 9.5\n", "is no list of views: list index out of range"),
            ("2\n0\n1 1 9.5\n1\n1 0\n", "2 views take 9 words, .* got 8 words and 2 ids"),
            ("2\n0\n1 1 9.5\n0\n1 1 9.5\n", "got 9 words and 1 ids"),
            ("1\n0\n1 1 9.5\n1\n1 0 9.5\n", "1 views take 5 words, .* got 9 words and 1 ids"),
        ],
    )
    def test_damage(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "pair.txt").write_text(text)
        with pytest.raises(InputError, match=rf"pair\.txt'.*{message}"):
            read_view_list(tmp_path / "pair.txt")


VALUES = np.array([[1, 2, 3], [4, np.nan, 6.5]])


class TestPfm:
    @pytest.mark.parametrize("size_line", ["3 2", "3 2 ", " 3   2\t"])
    @pytest.mark.parametrize(("scale", "order"), [("-1.000000", "<"), ("1", ">"), ("-0.5 ", "<")])
    def test_layout(self, tmp_path: Path, size_line: str, scale: str, order: str) -> None:
        path = tmp_path / "depth.pfm"
        data = VALUES[::-1].astype(order + "f4").tobytes()
        path.write_bytes(f"Pf\n{size_line}\n{scale}\n".encode() + data)
        values = read_pfm(path)
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, VALUES)

    def test_first_value_may_look_like_space(self, tmp_path: Path) -> None:
        """Bytes of the data that are blanks or line ends are data."""
        values = np.frombuffer(b"\n\n\n\n    \r\n\r\n", "<f4").reshape(1, 3)
        write_pfm(tmp_path / "depth.pfm", values)
        np.testing.assert_array_equal(read_pfm(tmp_path / "depth.pfm"), values)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "no PFM header"),
            (b"P5\n3 2\n255\n", "no PFM header"),
            (b"Pf\n3\n-1\n" + bytes(24), "no PFM header"),
            (b"PF\n3 2\n-1\n" + bytes(72), r"three channels \('PF'\)"),
            (b"Pf\n3 2\none\n" + bytes(24), "scale: could not convert"),
            (b"Pf\n3 2\n0\n" + bytes(24), "at a scale of 0"),
            (b"Pf\n3 2\nnan\n" + bytes(24), "at a scale of nan"),
            (b"Pf\n3 2\n-1\n" + bytes(23), "3 x 2 values take 24 bytes, got 23"),
            (b"Pf\n3 2\n-1\n" + bytes(25), "3 x 2 values take 24 bytes, got 25"),
            (b"Pf\n0 2\n-1\n", "0 x 2 values take 0 bytes, got 0"),
        ],
    )
    def test_damage(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "depth.pfm").write_bytes(content)
        with pytest.raises(InputError, match=rf"depth map '.*depth\.pfm'.*{message}"):
            read_pfm(tmp_path / "depth.pfm")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read depth map '.*depth\.pfm'"):
            read_pfm(tmp_path / "depth.pfm")


class TestNpy:
    @pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2", "u2"])
    def test_types(self, tmp_path: Path, dtype: str) -> None:
        np.save(tmp_path / "depth.npy", np.array([[1, 2, 3]], dtype))
        values = read_npy_depth(tmp_path / "depth.npy")
        assert values.dtype == np.float64
        assert values.tolist() == [[1, 2, 3]]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (np.zeros((2, 3, 1)), r"height x width, got float64 of \(2, 3, 1\)"),
            (np.array([["a"]]), r"height x width, got <U1 of \(1, 1\)"),
            (np.zeros((1, 1), complex), "height x width, got complex128"),
            (np.array([[None]]), "Object arrays cannot be loaded"),
        ],
    )
    def test_wrong_content(self, tmp_path: Path, value: np.ndarray, message: str) -> None:
        np.save(tmp_path / "depth.npy", value)
        with pytest.raises(InputError, match=rf"depth map '.*depth\.npy'.*{message}"):
            read_npy_depth(tmp_path / "depth.npy")

    def test_damage(self, tmp_path: Path) -> None:
        path = tmp_path / "depth.npy"
        with pytest.raises(InputError, match=r"cannot read depth map '.*depth\.npy'"):
            read_npy_depth(path)
        np.save(path, np.ones((9, 9)))
        whole = path.read_bytes()
        for length in (0, 4, 60, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"cannot read depth map '.*depth\.npy'"):
                read_npy_depth(path)
        with path.open("wb") as file:
            np.savez(file, depth=np.ones((2, 2)))
        with pytest.raises(InputError, match="got an archive"):
            read_npy_depth(path)

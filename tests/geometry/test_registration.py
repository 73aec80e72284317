"""Registration by Open3D: partial noisy clouds, units, ICP that helps or is refused, the same bits always."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from clouds import outputs_by_threads, room, similarity

from hess_plugin.geometry.registration import AlignmentError, align_by_features, cloud_size, refine_by_icp
from hess_plugin.geometry.similarity import Similarity

TARGET = room(20000, seed=1)


def moved(points: torch.Tensor, scale: float = 1.7, noise: float = 0.01, seed: int = 0) -> torch.Tensor:
    """The points in another frame, with noise: what a similarity of scale 1 / `scale` brings back."""
    noisy = points + noise * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed))
    return similarity(scale).apply(noisy)


def error(found: Similarity, points: torch.Tensor, scale: float = 1.7) -> float:
    """Median distance at which a perfect copy of points in the other frame is put."""
    return float((found.apply(similarity(scale).apply(points)) - points).norm(dim=-1).median())


class TestFeatures:
    @pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
    def test_known_similarity(self, scale: float) -> None:
        source = room(20000, seed=2)
        found = align_by_features(moved(source, scale), TARGET)
        assert error(found.transform, source, scale) < 0.05
        assert found.transform.scale.item() == pytest.approx(1 / scale, rel=0.03)
        assert found.fitness > 0.3

    def test_units_of_the_target_do_not_matter(self) -> None:
        source = room(20000, seed=2)
        found = align_by_features(moved(source), 1000 * TARGET)
        assert error(similarity_scaled(found.transform, 0.001), source) < 0.05

    def test_part_of_a_cloud_with_a_scale_and_viewpoints(self) -> None:
        """Half the room, against all of it: its size says nothing about the scale, but the cameras do."""
        source = room(30000, seed=2)
        source = source[source[:, 0] > 1.4]
        place = torch.tensor([1.5, 1.0, 1.0]).double()
        found = align_by_features(
            moved(source), TARGET, scale=1.1 / 1.7, viewpoints=(similarity().apply(place), place)
        )
        assert error(found.transform, source) < 0.1

    def test_more_points_than_are_read(self) -> None:
        found = align_by_features(moved(room(120_000, seed=2)), TARGET.float())
        assert error(found.transform, TARGET) < 0.05

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            (torch.randn(29, 3), TARGET, "source holds 29 points; an alignment needs at least 30"),
            (TARGET, torch.arange(99.0)[:, None] * torch.ones(3), "target points lie on one line"),
            (torch.ones(99, 3), TARGET, "source points lie on one line or in one place"),
            (torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)), TARGET, "features agree"),
            (
                torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)),
                TARGET,
                r"\d of \d\d matched features agree on one alignment, but at least 12 must",
            ),
        ],
    )
    def test_refused(self, source: torch.Tensor, target: torch.Tensor, message: str) -> None:
        with pytest.raises(AlignmentError, match=message):
            align_by_features(source, target)

    def test_wrong_guess_of_the_scale_is_told(self) -> None:
        with pytest.raises(AlignmentError, match=r"fills only \d+ cells .* first guess of the scale"):
            align_by_features(TARGET, TARGET, scale=0.01)


class TestIcp:
    START = Similarity(
        torch.tensor(1.0),
        torch.linalg.matrix_exp(0.03 * torch.tensor([[0.0, 1, 0], [-1, 0, 2], [0, -2, 0]])),
        torch.tensor([0.03, -0.02, 0.04]),
    )

    def test_improves_a_start_and_keeps_its_scale(self) -> None:
        source = room(20000, seed=2)
        before = float((self.START.apply(source) - source).norm(dim=-1).median())
        found = refine_by_icp(source, TARGET, self.START, radius=0.3)
        after = float((found.transform.apply(source) - source).norm(dim=-1).median())
        assert after < 0.1 * before
        assert found.transform.scale == self.START.scale
        torch.testing.assert_close(
            found.transform.rotation @ found.transform.rotation.T, torch.eye(3).double(), atol=1e-6, rtol=0
        )
        assert found.fitness > 0.99
        assert found.rmse < before

    def test_the_start_comes_back_where_nothing_is_gained(self) -> None:
        """No point is an inlier, so ICP has nothing to go by."""
        far = Similarity(torch.tensor(1.0), torch.eye(3), torch.tensor([50.0, 0, 0]))
        found = refine_by_icp(TARGET, TARGET, far, radius=0.3)
        assert torch.equal(found.transform.translation, far.translation.double())
        assert torch.equal(found.transform.rotation, torch.eye(3).double())
        assert found.fitness == 0

    def test_never_worse_in_what_it_minimises(self) -> None:
        """A source that is mostly noise: whatever ICP does, min(d², radius²) must not grow."""
        source = torch.cat(
            [TARGET[:500], 2 * torch.rand(2000, 3, generator=torch.Generator().manual_seed(3))]
        )
        identity = Similarity(torch.tensor(1.0), torch.eye(3), torch.zeros(3))
        for radius in (0.05, 0.2, 1.0):
            costs = []
            for start in (identity, refine_by_icp(source, TARGET, identity, radius).transform):
                nothing = refine_by_icp(source, TARGET, start, radius)
                costs.append(nothing.fitness * nothing.rmse**2 + (1 - nothing.fitness) * radius**2)
            assert costs[1] <= costs[0] * 1.01  # thinning in another frame moves points a little

    def test_bad_input(self) -> None:
        with pytest.raises(AlignmentError, match="target points lie on one line"):
            refine_by_icp(TARGET, torch.ones(99, 3), self.START, radius=0.3)
        with pytest.raises(ValueError, match=r"source must be \[N, 3\] and finite, got \[4, 3\]"):
            refine_by_icp(torch.full((4, 3), torch.nan), TARGET, self.START, radius=0.3)


def similarity_scaled(transform: Similarity, factor: float) -> Similarity:
    return Similarity(factor * transform.scale, transform.rotation, factor * transform.translation)


def test_cloud_size_by_hand() -> None:
    """Median (1, 0, 0); distances 1, 0, 1, 9, 1: an outlier changes nothing."""
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [10, 0, 0], [1, 1, 0]])
    assert cloud_size(points) == 1


def test_the_same_bits_for_any_number_of_threads() -> None:
    code = """
import hashlib, torch
from clouds import outputs_by_threads, room, similarity
from hess_plugin.geometry.registration import align_by_features, refine_by_icp
source, target = similarity().apply(room(10000, 1)), room(10000, 2)
for _ in range(2):
    coarse = align_by_features(source, target)
    fine = refine_by_icp(source, target, coarse.transform, radius=0.3)
    assert not torch.equal(fine.transform.rotation, coarse.transform.rotation)
    parts = [part for a in (coarse, fine) for part in vars(a.transform).values()]
    print(hashlib.sha256(b"".join(p.numpy().tobytes() for p in parts)).hexdigest(), coarse.rmse, fine.rmse)
"""
    lines = [line for printed in outputs_by_threads(code) for line in printed.splitlines()]
    assert len(lines) == 4
    assert len(set(lines)) == 1


def test_missing_open3d_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r'needs Open3D; pip install "hess-plugin\[calibration\]"'):
        align_by_features(TARGET, TARGET)


def test_library_that_open3d_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open3d.py").write_text("raise ImportError('libusb-1.0.so.0: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open3d", raising=False)
    with pytest.raises(ImportError, match=r"not load: libusb-1\.0\.so\.0: cannot open; install the system's"):
        align_by_features(TARGET, TARGET)
